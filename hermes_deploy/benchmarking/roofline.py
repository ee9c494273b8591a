"""How fast a decode step could be at most: the bytes that it must read, by what the memory gives.

A model whose weights are larger than the last cache level reads all of them for every step, and the keys and values
of every chat in it. What small kernels and their dispatch cost is not in it: the distance is what they cost.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

_ARRAY_BYTES = 256 << 20
"""For each thread: several times what the last cache level holds."""
_PASSES = 8


@dataclass(frozen=True)
class Reads:
    """Bytes. `weights`: of a step, scales and head included; `token`: keys and values of one token of one chat."""

    weights: int
    token: int

    def a_step(self, streams: int, context: int) -> int:
        """Bytes that one step of `streams` chats behind `context` tokens each reads at least."""
        return self.weights + streams * context * self.token


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together from arrays that no cache holds: the best of some passes."""
    arrays = [np.ones(_ARRAY_BYTES // 8) for _ in range(threads)]  # float64: the adds are far from the limit
    best = 0.0
    for _ in range(_PASSES):
        readers = [threading.Thread(target=np.add.reduce, args=(array,)) for array in arrays]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * _ARRAY_BYTES / (time.perf_counter() - began))
    return best


def bound(reads: Reads, bandwidth: float, streams: int, context: int) -> float:
    """Tokens per second of all streams together that `bandwidth` (bytes/s) allows at most."""
    return streams * bandwidth / reads.a_step(streams, context)
