"""Reads chunks of prompts in a thread of its own, while the token loop goes on decoding.

One chunk at a time. Used with engines whose calls may overlap (`Session.overlaps`): on two cores running chats
then wait 2.5 times as long for a token while a long prompt is read; taking turns with it, it would be 4 to 8 times.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.guarded_session import EngineFailed, GuardedSession
from hermes_deploy.runtime.scheduler import Chunk


@dataclass(frozen=True)
class Read:
    """What came of a chunk: `logits` [rows, vocab] of its last tokens, or why it failed. `seconds`: in the engine."""

    chunk: Chunk
    logits: npt.NDArray[np.float32] | None
    failure: str
    seconds: float


def read_chunk(engine: GuardedSession, chunk: Chunk, tokens: npt.NDArray[np.int64], rows: int) -> Read:
    """In the calling thread. `tokens` [chunk.count], logits of the last `rows` of them."""
    try:
        logits = engine.prefill(chunk.slot, tokens, chunk.start, rows)
    except EngineFailed as failed:
        return Read(chunk, None, str(failed), engine.last_seconds)
    return Read(chunk, logits, "", engine.last_seconds)


class Reader:
    """`start`, `take`, `wait` and `close` are called by one thread."""

    def __init__(self, engine: GuardedSession) -> None:
        self._engine = engine
        self._asked: tuple[Chunk, npt.NDArray[np.int64], int] | None = None
        self._read: Read | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prompt-reader", daemon=True)
        self._thread.start()

    @property
    def key(self) -> int | None:
        """The chat whose chunk is being read, or was and is not taken yet."""
        asked = self._asked
        return None if asked is None else asked[0].key

    def start(self, chunk: Chunk, tokens: npt.NDArray[np.int64], rows: int) -> None:
        """See `read_chunk`. What was read before has been taken."""
        with self._changed:
            assert self._asked is None, "one chunk at a time"
            self._asked = (chunk, tokens, rows)
            self._changed.notify_all()

    def take(self) -> Read | None:
        """What was read, once; None while it is being read and when nothing is."""
        with self._changed:
            read = self._read
            if read is not None:
                self._asked = self._read = None
            return read

    def wait(self, timeout: float) -> None:
        """Until a chunk was read, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._read is not None, timeout)

    def close(self) -> None:
        """Waits until the call that is going on has come back."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._asked is not None and self._read is None))
                if self._closing:
                    return
                asked = self._asked
            assert asked is not None
            read = read_chunk(self._engine, *asked)
            with self._changed:
                self._read = read
                self._changed.notify_all()
