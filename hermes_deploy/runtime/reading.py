"""How prompts are read in: how many tokens in which step, in turn with the decodes or beside them, and the books of it.

Takes chunks that the scheduler planned, gives what was read of them. What becomes of a chat then is the token loop's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.guarded_session import GuardedSession
from hermes_deploy.runtime.metrics import Metrics
from hermes_deploy.runtime.pace import Pace
from hermes_deploy.runtime.reader import Read, Reader, read_chunk
from hermes_deploy.runtime.scheduler import Chunk, Scheduler
from hermes_deploy.runtime.stream import Generation

_BESIDE = 128
"""Most prompt tokens of a chunk that is read beside decodes: a chat that is being read ends only after its chunk."""
_IDLE = 0.02
"""Seconds between looks at cancellation while a chunk is read and nobody decodes."""
_LOGPROB_ROWS = 32
"""Prompt tokens read at a time when all their logits are wanted: a row is as wide as the vocabulary."""


class Reading:
    """`chunk`: most tokens that one prefill takes. `stretch`: see `Pace`. `overlaps`: see `Session`."""

    def __init__(
        self,
        engine: GuardedSession,
        scheduler: Scheduler,
        metrics: Metrics,
        chunk: int,
        *,
        stretch: float,
        overlaps: bool,
    ) -> None:
        self._engine, self._scheduler, self._metrics = engine, scheduler, metrics
        self._chunk = chunk
        self._pace = Pace(chunk, stretch)
        self._reader = Reader(engine) if overlaps else None

    @property
    def key(self) -> int | None:
        """The chat whose chunk is read beside the decodes."""
        return None if self._reader is None else self._reader.key

    def budget(self) -> int:
        """Prompt tokens that may be read in this step."""
        decoding = self._scheduler.decoding
        if self._reader is None:
            return self._pace.budget(decoding, len(self._scheduler.running) - decoding)
        if self._reader.key is not None:
            return 0
        return min(_BESIDE, self._chunk) if decoding else self._chunk

    def read(self, chunk: Chunk, asked: Generation, *, beside: bool) -> Read | None:
        """Reads `chunk` of the prompt of `asked`, or less of it; `beside` decodes where that is possible, and then
        gives None: `take` gives it later."""
        if asked.prompt_logprobs is not None and chunk.count > _LOGPROB_ROWS:
            left = len(asked.prompt) - chunk.start
            chunk = Chunk(chunk.key, chunk.slot, chunk.start, _LOGPROB_ROWS - (left == _LOGPROB_ROWS + 1))
        end = chunk.start + chunk.count
        rows = chunk.count if asked.prompt_logprobs is not None else int(end == len(asked.prompt))
        tokens: npt.NDArray[np.int64] = asked.prompt[chunk.start : end]
        if beside and self._reader is not None:
            self._reader.start(chunk, tokens, rows)
            return None
        return read_chunk(self._engine, chunk, tokens, rows)

    def take(self) -> Read | None:
        """What was read beside the decodes since it was asked last."""
        return None if self._reader is None else self._reader.take()

    def was_read(self, read: Read) -> None:
        """`read` is in the cache."""
        self._pace.read(read.chunk.count, read.seconds)
        self._metrics.prefill_time.observe(read.seconds)
        self._scheduler.prefilled(read.chunk)

    def decoded(self, seconds: float) -> None:
        """One decode step took that long."""
        self._pace.decoded(seconds)

    def wait(self) -> bool:
        """For what is read beside nothing, but not for long. False: nothing is."""
        if self._reader is None or self._reader.key is None:
            return False
        self._reader.wait(_IDLE)
        return True

    def close(self) -> None:
        """Waits until the call that is going on has come back."""
        if self._reader is not None:
            self._reader.close()
