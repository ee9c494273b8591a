"""What the token loop costs a step besides the engine: scheduling, sampling, delivery to a receiver thread each.

The engine is a session that gives logits which a real one computed before. It sleeps as long as a small model
computes, because while an engine computes the receivers have the interpreter to themselves: without that
they would be charged to the loop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.benchmarking.doors import taken
from hermes_deploy.benchmarking.listening import Listener, await_all, percentile
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.runtime.token_loop import TokenLoop

COST = "step without the engine, p50"
GREEDY = Sampling()
DRAWN = Sampling(temperature=0.7, top_p=0.95, seed=7)
_ROWS = 128
_ENGINE_SECONDS = 0.004
_SETTLING = 8
"""Steps that are not counted, in which caches and allocators get used to it."""


def prepared_logits(session: Session, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """[rows, vocab]: what the model says at the last places of the text `ids` [n]."""
    ids = ids[: session.max_context]
    wanted, found = min(_ROWS, len(ids)), []
    for start in range(0, len(ids), 32):
        chunk = ids[start : start + 32]
        rows = len(chunk) if start + len(chunk) > len(ids) - wanted else 0
        found.append(session.prefill(0, chunk, start, rows).copy())
    return np.concatenate(found)[-wanted:]


class PreparedSession:
    """A `Session` that computes nothing. `between`: seconds from the end of each decode to the next one's start."""

    def __init__(self, rows: npt.NDArray[np.float32], slots: int, max_context: int, engine_seconds: float) -> None:
        self.slots, self.max_context, self.vocab_size = slots, max_context, rows.shape[1]
        self.prefill_chunk = 256
        self.cache_token_bytes = 0
        self.overlaps = False
        self.draft_tokens = 0
        self.between: list[float] = []
        self._rows = rows
        self._logits = np.empty((slots, rows.shape[1]), dtype=np.float32)
        self._engine_seconds = engine_seconds
        self._ended: float | None = None
        self._step = 0

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """See `Session.prefill`."""
        del slot, tokens, start
        self._ended = None  # a step that reads is another kind of step
        return self._rows[:logits].copy()

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Session.decode`."""
        del tokens, positions
        began = time.perf_counter()
        if self._ended is not None and len(slots) == self.slots:
            self.between.append(began - self._ended)
        time.sleep(self._engine_seconds)
        self._step += 1
        places = (np.arange(len(slots)) * 13 + self._step) % len(self._rows)
        # written here, as an engine has just written them
        logits = self._logits[: len(slots)]
        np.take(self._rows, places, axis=0, out=logits)
        self._ended = time.perf_counter()
        return logits

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """See `Session.copy`."""

    def close(self) -> None:
        """Nothing is held."""


def measure_cost(
    rows: npt.NDArray[np.float32],
    streams: int,
    sampling: Sampling,
    name: str,
    found: Collected,
    *,
    steps: int = 300,
    engine_seconds: float = _ENGINE_SECONDS,
) -> None:
    """`streams` chats over `rows` [n, vocab] of logits, each with `sampling`, which `name` says in words."""
    session = PreparedSession(rows, streams, steps + 64, engine_seconds)
    loop = TokenLoop(session)
    try:
        prompts = [np.array([stream % session.vocab_size], dtype=np.int64) for stream in range(streams)]
        answers = [loop.submit(Generation(prompt, steps, sampling)) for prompt in prompts]
        await_all([Listener(taken(answer)) for answer in answers])
    finally:
        loop.close()
    counted = session.between[_SETTLING:]
    found.keep(What(COST, "ms", name, streams), percentile(counted, 50) * 1e3)
    found.keep(What("step without the engine, p99", "ms", name, streams), percentile(counted, 99) * 1e3)
