"""A Session whose calls are timed, counted and watched: what an engine can do wrong ends here as one error.

Knows nothing of chats. The watchdog runs in a thread of its own and notices a call that does not come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.session import Session


class EngineFailed(Exception):
    """A call of the engine raised, or came back after it was given up. The text is the cause."""


class GuardedSession:
    """`session` with the same calls, each of which may raise EngineFailed.

    A prefill may run in a second thread where the session `overlaps`. `seconds` and `last_seconds` are those of the
    thread that asks.

    `timeout`: seconds after which a call counts as hanging; `on_hang(cause)` is then called once, from another
    thread, while the call goes on.
    """

    def __init__(self, session: Session, timeout: float, on_hang: Callable[[str], None]) -> None:
        self._session = session
        self._timeout = timeout
        self._on_hang = on_hang
        self._since: dict[int, float] = {}
        """When the calls that are going on began, by thread."""
        self._own = threading.local()
        self._closed = threading.Event()
        self._hangs = False
        self._failures = 0
        self._decode_failures = 0
        self.all_failures = 0
        self.calls = 0
        """Calls that came back, well or not."""
        self.longest = 0.0
        """Seconds of the longest call that came back."""
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """See `Session.prefill`."""
        with self._call():
            return self._session.prefill(slot, tokens, start, logits)

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Session.decode`."""
        with self._answer():
            return self._session.decode(slots, tokens, positions)

    def check(self, slot: int, tokens: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.float32]:
        """Logits [n, vocab] after each of `tokens` [n], one of the answer and a draft; see `Session.draft_tokens`."""
        with self._answer():
            return self._session.prefill(slot, tokens, start, len(tokens))

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """See `Session.copy`."""
        with self._call():
            self._session.copy(source, target, start, count)

    @property
    def failures(self) -> int:
        """Calls that failed in a row, or decodes that did: an engine that reads prompts and cannot answer is broken."""
        return max(self._failures, self._decode_failures)

    @property
    def seconds(self) -> float:
        """Time that this thread has spent in calls."""
        return getattr(self._own, "seconds", 0.0)

    @property
    def last_seconds(self) -> float:
        """Time of this thread's last call."""
        return getattr(self._own, "last_seconds", 0.0)

    @property
    def in_call(self) -> float | None:
        """Seconds since the oldest call that is going on began, None between calls. From any thread."""
        since = min(list(self._since.values()), default=None)
        return None if since is None else time.monotonic() - since

    def close(self) -> None:
        """Closes the session, after its last call has come back. The watchdog ends first."""
        self._closed.set()
        self._session.close()

    @contextmanager
    def _answer(self) -> Iterator[None]:
        try:
            with self._call():
                yield
        except EngineFailed:
            self._decode_failures += 1
            raise
        self._decode_failures = 0

    @contextmanager
    def _call(self) -> Iterator[None]:
        thread, began = threading.get_ident(), time.monotonic()
        self._since[thread] = began
        try:
            yield
            self._failures = 0
        except Exception as error:  # whatever an engine raises, it belongs to those who were in the call
            self._failures += 1
            self.all_failures += 1
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        finally:
            del self._since[thread]
            self._own.last_seconds = time.monotonic() - began
            self._own.seconds = self.seconds + self.last_seconds
            self.longest = max(self.longest, self.last_seconds)
            self.calls += 1
        if self._hangs:
            raise EngineFailed(self._hang())

    def _hang(self) -> str:
        return f"a call of the engine did not come back within {self._timeout:g} s"

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 4)):
            if (self.in_call or 0.0) > self._timeout:
                self._hangs = True
                self._on_hang(self._hang())
                return
