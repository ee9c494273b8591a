"""Which row of the device's cache holds which slot, and what to move so that a batch lies together. Pure.

An engine runs neighbouring rows: one address and a count. Slots that decode together change when a chat
begins or ends, hardly ever in between, and a row is copied on a device in a fraction of a step. So rows
change places once and every step then runs what was asked for and nothing else. `RowLayout` plans those
exchanges and keeps the books; memory is moved by whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """Rows `one` and `other` change places; they hold content up to `one_tokens` and `other_tokens`."""

    one: int
    other: int
    one_tokens: int
    other_tokens: int


class RowLayout:
    """`slots` slots in as many rows, at first each in the row of its own number and empty."""

    def __init__(self, slots: int) -> None:
        self._row = list(range(slots))
        self._slot = list(range(slots))
        self._length = [0] * slots

    def row(self, slot: int) -> int:
        return self._row[slot]

    def length(self, slot: int) -> int:
        """Tokens up to the last position that somebody may still rely on."""
        return self._length[slot]

    def wrote(self, slot: int, start: int, count: int) -> None:
        """Positions start..start+count of `slot` were written. At position 0 a new chat begins: what lay
        behind was computed from other tokens."""
        self._length[slot] = start + count if start == 0 else max(self._length[slot], start + count)

    def gather(self, slots: Sequence[int]) -> list[Exchange]:
        """The exchanges that bring `slots` into neighbouring rows, of all ways the one that moves fewest tokens."""
        wanted = {self._row[slot] for slot in slots}
        starts = range(len(self._row) - len(wanted) + 1)
        first = min(starts, key=lambda start: self._moved(range(start, start + len(wanted)), wanted))
        window = range(first, first + len(wanted))
        strangers = [row for row in window if row not in wanted]
        outside = sorted(wanted.difference(window))
        return [
            Exchange(one, other, self._length[self._slot[one]], self._length[self._slot[other]])
            for one, other in zip(strangers, outside, strict=True)
        ]

    def exchanged(self, move: Exchange) -> None:
        """The memory of `move` was moved."""
        one, other = self._slot[move.one], self._slot[move.other]
        self._slot[move.one], self._slot[move.other] = other, one
        self._row[one], self._row[other] = move.other, move.one

    def _moved(self, window: range, wanted: set[int]) -> int:
        """Tokens that move when the rows of `wanted` come into `window`; an empty row costs one for its calls."""
        moving = wanted.symmetric_difference(window)
        return sum(max(1, self._length[self._slot[row]]) for row in moving)
