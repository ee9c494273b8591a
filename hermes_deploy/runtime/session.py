"""The only seam between the token loop and an engine. Knows token ids, not text.

A session owns one preallocated KV cache of `slots` rows and updates it in place. Callers decide
which row holds which chat; a session remembers nothing but the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Session(Protocol):
    """`slots` rows of at most `max_context` tokens; logits are float32, a row of `[vocab_size]` a token.

    The arrays of logits that calls give are the session's own: they may be changed by the caller and hold
    until its next call of that name. One caller at a time, but for what `overlaps` says.
    """

    slots: int
    max_context: int
    vocab_size: int
    prefill_chunk: int
    """Most tokens that one `prefill` call takes."""
    overlaps: bool
    """While one thread is in `prefill` of a row, another may call `decode` and `copy` of other rows."""
    draft_tokens: int
    """Most guessed tokens that one run can check: a `prefill` of them and the token before, behind what the row
    holds, with the logits of each that `decode` would give. 0 = no run does that."""
    cache_token_bytes: int
    """Bytes of KV cache that one token of one row takes."""

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """Writes `tokens` [n] at positions start..start+n of row `slot`; logits [logits, vocab] of the last ones.

        `logits` is 0 (a chunk in the middle of a prompt needs none) to n. Position 0 begins a new chat: what the
        row held behind it may be lost.
        """
        ...

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """One token for each of `slots` [n], in any order: writes tokens[i] at positions[i]; logits [n, vocab].

        Rows that are not named keep their cache. Which slots they are makes no difference in time.
        """
        ...

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """Positions start..start+count of row `source` become those of row `target`."""
        ...

    def close(self) -> None: ...
