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
    """`slots` rows of at most `max_context` tokens; logits are float32 `[vocab_size]` a row."""

    slots: int
    max_context: int
    vocab_size: int
    prefill_chunk: int
    """Most tokens that one `prefill` call takes."""

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.float32]:
        """Writes `tokens` [n] at positions start..start+n of row `slot`; logits [vocab] of the last one."""
        ...

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """One token for each of `slots` [n]: writes tokens[i] at positions[i]; logits [n, vocab].

        Rows that are not named keep their cache unchanged up to the length their owner knows.
        """
        ...

    def close(self) -> None: ...
