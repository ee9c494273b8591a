"""Which tokens lie in which row of the KV cache, and what of a prompt is there already. Pure.

A row keeps its tokens when its chat has ended, until another chat needs the row: the next turn of
that chat, or another chat with the same system prompt, then starts where they part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

LEAST_READ = 2
"""Tokens of a prompt that are read though they are known. The last one's logits are needed; and of a single token
an engine's kernels round otherwise than of several, which in few bits moves logits by up to 0.5."""


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of equal tokens at the start of `a` [n] and `b` [m]."""
    size = min(len(a), len(b))
    different = a[:size] != b[:size]
    first = int(different.argmax()) if size else 0
    return first if size and different[first] else size


class Row:
    """Tokens [length] of one row, each at its position in the cache. `used`: when, as a count of steps."""

    def __init__(self, max_context: int) -> None:
        self._tokens: Tokens = np.empty(max_context, dtype=np.int64)
        self.length = 0
        self.used = 0

    @property
    def tokens(self) -> Tokens:
        return self._tokens[: self.length]

    def write(self, tokens: Tokens | Sequence[int]) -> None:
        """`tokens` [n] come after those that are there."""
        self._tokens[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)

    def cut(self, length: int) -> None:
        """Only the first `length` are valid from now on."""
        self.length = min(self.length, length)


def choose_row(prompt: Tokens, rows: Sequence[Row], free: Iterable[int]) -> tuple[int, int]:
    """(row, tokens of `prompt` [n] that are valid in it) for a new chat; at most n - LEAST_READ.

    The free row with the longest common prefix, if that is at least half of what the row holds; else the
    one that was not used for longest, so that a system prompt does not cost another chat its history:
    the prefix can be copied.
    """
    reusable = prompt[:-LEAST_READ]
    best = oldest = -1
    longest = 0
    for index in free:
        shared = common_prefix(rows[index].tokens, reusable)
        if shared > longest and 2 * shared >= rows[index].length:
            best, longest = index, shared
        if oldest < 0 or rows[index].used < rows[oldest].used:
            oldest = index
    if best >= 0:
        return best, longest
    return oldest, common_prefix(rows[oldest].tokens, reusable)


def longer_elsewhere(prompt: Tokens, have: int, rows: Sequence[Row], own: int) -> tuple[int, int]:
    """(row, length) of the longest prefix of `prompt` in a row other than `own`, or (own, have)."""
    reusable = prompt[:-LEAST_READ]
    found, longest = own, have
    for index, row in enumerate(rows):
        if index != own and min(row.length, len(reusable)) > longest:
            shared = common_prefix(row.tokens, reusable)
            if shared > longest:
                found, longest = index, shared
    return found, longest
