"""What a chat will probably say next, looked up in what it holds already: no second model (prompt lookup).

Takes the tokens of prompt and answer in order, gives the ones that followed where the newest ones stood before,
and how sure it is of them. A token costs the same however long the chat is. Knows no engine and no clock.

It guesses silently all the time. So whether its guesses are right is known without one call of an engine, and
where nothing repeats trying again costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

REMEMBERED = 1 << 14
"""Newest tokens that are looked up; of up to twice as many the places are kept, in about 300 bytes each."""
_LEAST_RESUMED = 4
"""Tokens that were right in a row, after which one that was not is taken for a word that was replaced."""
_SHORT = 3
_BEGINS = (1, _SHORT + 1, 9)
_USUAL = (0.5, 0.9, 0.97)
"""By how many tokens agree (`_BEGINS`): how often the next one does too, in a chat of which nothing is known."""
_WEIGHT = 2.0
"""Guesses that the usual counts as."""
_FORGET = 0.95
"""What is left of a guess's weight at the next one of its kind."""


class Drafter:
    """One a chat. `prompt` [n] token ids."""

    def __init__(self, prompt: npt.NDArray[np.int64], remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._tokens: list[int] = []
        self._after_two: dict[tuple[int, ...], int] = {}
        self._after_three: dict[tuple[int, ...], int] = {}
        """The newest place that came after two, or three, tokens in a row."""
        self._place: int | None = None
        """Where the guess for the next token stands."""
        self._agree = 0
        """Tokens before `_place` that are those at the end."""
        self._resumed = False
        self._right = [0.0] * (len(_BEGINS) + 1)
        self._guessed = [0.0] * (len(_BEGINS) + 1)
        self.seen = len(prompt)
        """Tokens of prompt and answer that it was told."""
        self._remember(prompt[-remembered:].tolist())
        self._look_up()

    def follow(self, cached: npt.NDArray[np.int64], last: int) -> None:
        """The chat is `cached` [n] and then `last` now; what of it is new is looked at."""
        for token in [*cached[self.seen :].tolist(), last]:
            self.add(token)

    def add(self, token: int) -> None:
        """`token` came next."""
        self.seen += 1
        tokens = self._tokens
        place, right = self._place, False
        if place is not None:
            right = tokens[place] == token
            kind = self._kind(self._agree)
            self._right[kind] = _FORGET * self._right[kind] + right
            self._guessed[kind] = _FORGET * self._guessed[kind] + 1
        # now that something came after the last ones: not before, they would be found as their own repetition
        here = len(tokens)
        if here >= 2:
            self._after_two[tokens[-2], tokens[-1]] = here
        if here >= 3:
            self._after_three[tokens[-3], tokens[-2], tokens[-1]] = here
        tokens.append(token)
        if right and place is not None:
            self._place, self._agree = place + 1, self._agree + 1
        else:
            long = self._agree >= _LEAST_RESUMED
            self._look_up()
            if self._place is None and place is not None and long:
                self._place, self._agree, self._resumed = place + 1, 1, True
        if len(tokens) >= 2 * self._remembered:
            self._remember(tokens[-self._remembered :])
            self._look_up()

    def chances(self, count: int) -> list[float]:
        """[0 to `count`]: how likely each of the next tokens is as guessed, those before it being so."""
        if self._place is None:
            return []
        return [self._chance(self._kind(self._agree + ahead)) for ahead in range(count)]

    def draft(self, count: int) -> list[int]:
        """[`count`] the next tokens as guessed. Only where `chances` are."""
        assert self._place is not None, "there is no guess"
        found = self._tokens[self._place : self._place + count]
        # what repeats itself up to the end goes on repeating
        period = len(self._tokens) - self._place
        while len(found) < count:
            found.append(found[-period])
        return found

    def _kind(self, agree: int) -> int:
        if self._resumed and agree <= _SHORT:
            return len(_BEGINS)
        return sum(agree >= begin for begin in _BEGINS) - 1

    def _chance(self, kind: int) -> float:
        usual = _USUAL[kind % len(_BEGINS)]
        return (self._right[kind] + _WEIGHT * usual) / (self._guessed[kind] + _WEIGHT)

    def _look_up(self) -> None:
        tokens, self._resumed = self._tokens, False
        self._place = self._after_three.get(tuple(tokens[-3:]))
        self._agree = 3
        if self._place is None:
            self._place = self._after_two.get(tuple(tokens[-2:]))
            self._agree = 2

    def _remember(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._after_two, self._after_three = _places(tokens, 2), _places(tokens, 3)


def _places(tokens: Sequence[int], length: int) -> dict[tuple[int, ...], int]:
    """The newest place that came after each `length` tokens in a row."""
    rows: Iterable[tuple[int, ...]] = zip(*(tokens[start:] for start in range(length)), strict=False)
    return dict(zip(rows, range(length, len(tokens)), strict=False))
