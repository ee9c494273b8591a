"""How many guessed tokens are worth checking in one step, from what steps were seen to take. No clock of its own.

A step that checks k guesses gives one token and as many more as are right in a row. What it costs differs from
engine to engine (on two cores about a quarter of a plain step a guess, on a GPU hardly anything), so it is measured:
how often guesses are right alone would not tell how many to check.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hermes_deploy.runtime.drafter import Drafter

MOST = 15
"""Guesses that are checked at once."""
_LEAST_GAIN = 1.02
"""Tokens a step over its cost: what a draft must promise."""
_USUAL = 0.25
"""Cost of a further token of a step, a plain step being 1, before one was measured."""
_NEWEST = 0.2
"""Weight of the newest measurement."""
_FADE = 0.01
"""How far a plain step takes the cost back to the usual: one bad measurement is not for ever."""


class Speculation:
    """`most`: tokens of a draft that the engine checks in one run; see `Session.draft_tokens`."""

    def __init__(self, most: int) -> None:
        self._most = min(most, MOST)
        self._plain: float | None = None
        self.further = _USUAL
        """What one more token of a step costs, a plain step being 1."""

    def draft(self, drafter: Drafter, room: int, stop_ids: Collection[int]) -> list[int]:
        """What to check of the guesses of `drafter`: none where it does not pay, at most `room`, and nothing from
        the first of `stop_ids` on: behind it comes nothing."""
        if self._plain is None:
            return []
        count = worth_checking(drafter.chances(min(room, self._most)), self.further)
        draft = drafter.draft(count) if count else []
        return draft[: next((at for at, token in enumerate(draft) if token in stop_ids), None)]

    def stepped(self, seconds: float) -> None:
        """A step of one token took that long, with nobody beside it."""
        self._plain = seconds if self._plain is None else (1 - _NEWEST) * self._plain + _NEWEST * seconds
        self.further += _FADE * (_USUAL - self.further)

    def checked(self, tokens: int, seconds: float) -> None:
        """A step of `tokens`, two or more, took that long."""
        if self._plain is not None:
            further = max(0.0, seconds / self._plain - 1) / (tokens - 1)
            self.further = (1 - _NEWEST) * self.further + _NEWEST * further


def worth_checking(chances: Sequence[float], further: float) -> int:
    """The number of guesses that gives most tokens for the time, 0 = none of them pays.

    `chances` [n]: that each guess is right, those before it being so. `further`: cost of each, a plain step being 1.
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
