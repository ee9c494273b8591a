"""How many guessed tokens are worth checking in one step. Pure.

A step that checks k guesses gives one token and as many more as are right in a row. How often the guesses of this
chat are right decides (`Drafter.chances`), and what a checked token costs, which is a constant. It could be measured
while serving, but there is little to gain: where it is half as much, the best number of guesses brings 1 % more. And
this way the same request gets the same steps, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hermes_deploy.runtime.drafter import Drafter

MOST = 15
"""Guesses that are checked at once."""
FURTHER = 0.2
"""Cost of each further token of a step, a plain step being 1: 0.11 to 0.21 for 2 to 16 tokens on two cores."""
_LEAST_GAIN = 1.02
"""Tokens a step over its cost: what a draft must promise."""


def draft_of(drafter: Drafter, most: int, stop_ids: Collection[int]) -> list[int]:
    """What to check of the guesses of `drafter`: none where it does not pay, at most `most`, and nothing from
    the first of `stop_ids` on, behind which nothing comes."""
    count = worth_checking(drafter.chances(most))
    guesses = drafter.draft(count) if count else []
    return guesses[: next((at for at, token in enumerate(guesses) if token in stop_ids), None)]


def worth_checking(chances: Sequence[float], further: float = FURTHER) -> int:
    """The number of guesses that gives most tokens for the time, 0 = none of them pays.

    `chances` [n]: that each guess is right, those before it being so. `further`: see `FURTHER`.
    """
    best, count = _LEAST_GAIN, 0
    tokens = right = 1.0
    for checked, chance in enumerate(chances, 1):
        right *= chance
        tokens += right
        gain = tokens / (1 + checked * further)
        if gain > best:
            best, count = gain, checked
    return count
