"""A deterministic engine for scheduler tests: the next token is a function of the whole row, so a token that
lands in another chat's row, at a wrong position or twice changes the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt


def next_token(row: npt.NDArray[np.int64], vocab_size: int) -> int:
    """What the fake says after `row` [n]."""
    return int((row * np.arange(1, len(row) + 1) + 7).sum() % vocab_size)


def expected(prompt: Sequence[int], count: int, vocab_size: int = 100) -> list[int]:
    """The answer of `count` tokens, computed without any session."""
    row = list(prompt)
    for _ in range(count):
        row.append(next_token(np.array(row), vocab_size))
    return row[len(prompt) :]


class FakeSession:
    """`calls` records ("prefill", (slot,)) and ("decode", slots). `before` runs before each call and may raise;
    `spoil` may change the logits."""

    OVERLAPS = False
    """What `overlaps` is unless a test says."""

    def __init__(
        self,
        *,
        slots: int = 3,
        max_context: int = 64,
        vocab_size: int = 100,
        prefill_chunk: int = 8,
        overlaps: bool | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self.slots = slots
        self.max_context = max_context
        self.vocab_size = vocab_size
        self.prefill_chunk = prefill_chunk
        self.cache_token_bytes = 8
        self.overlaps = self.OVERLAPS if overlaps is None else overlaps
        self.draft_tokens = draft_tokens
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.closed = threading.Event()
        self.before: Callable[[str, tuple[int, ...]], None] = lambda _kind, _slots: None
        self.spoil: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] = lambda logits: logits
        self._rows = np.full((slots, max_context), -1, dtype=np.int64)

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        assert 1 <= len(tokens) <= self.prefill_chunk
        assert 0 <= logits <= len(tokens)
        self._record("prefill", (slot,))
        self._rows[slot, start : start + len(tokens)] = tokens
        last = start + len(tokens)
        rows = [self._logits(slot, last - back) for back in reversed(range(logits))]
        return np.array(rows, dtype=np.float32).reshape(logits, self.vocab_size)

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        assert len(set(slots)) == len(slots) == len(tokens) == len(positions)
        self._record("decode", tuple(slots))
        for slot, token, position in zip(slots, tokens, positions, strict=True):
            self._rows[slot, position] = token
        return self.spoil(np.stack([self._logits(s, p + 1) for s, p in zip(slots, positions.tolist(), strict=True)]))

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        self._record("copy", (source, target))
        self._rows[target, start : start + count] = self._rows[source, start : start + count]

    def close(self) -> None:
        self.closed.set()

    def _record(self, kind: str, slots: tuple[int, ...]) -> None:
        self.before(kind, slots)
        self.calls.append((kind, slots))

    def _logits(self, slot: int, length: int) -> npt.NDArray[np.float32]:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[next_token(self._rows[slot, :length], self.vocab_size)] = 10.0
        return logits
