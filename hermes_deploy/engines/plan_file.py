"""The plan on its way to disk: written and hashed by a thread of its own, while TensorRT makes the next piece.

Takes the pieces of `build_serialized_network_to_stream` (64 MiB each), gives size and sha256. Knows no
TensorRT. For the 7.5 GB of an FP8 7B this is ten seconds that the builder does not wait.
"""

from __future__ import annotations

import hashlib
import threading
from io import BufferedWriter
from queue import SimpleQueue
from types import TracebackType

_WAITING = 2
"""Pieces that may wait to be written; more would be memory for nothing."""


class PlanFile:
    """A context; `size`, `sha256` and `error` are true once it is left. Ask for nothing else inside.

    `error`: why a piece could not be written, None where all were. It is kept, not raised: an
    exception must not travel through TensorRT.
    """

    def __init__(self, stream: BufferedWriter) -> None:
        self.size = 0
        self.error: OSError | None = None
        self._stream = stream
        self._digest = hashlib.sha256()
        self._pieces: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = threading.Semaphore(_WAITING)
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> PlanFile:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pieces.put(None)
        self._thread.join()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, piece: bytes) -> bool:
        """False once a piece could not be written: the builder may stop. Waits while too many wait."""
        self._room.acquire()
        self._pieces.put(piece)
        return self.error is None

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self.error is None:
                try:
                    self._stream.write(piece)
                    self._stream.flush()
                except OSError as error:
                    self.error = error
                self._digest.update(piece)
                self.size += len(piece)
            self._room.release()
