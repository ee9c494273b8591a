"""Notices an engine call that does not come back. Knows nothing of what the call does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """`with watchdog:` around each call, from one thread. `bark(cause)` runs in a thread of the watchdog's own,
    once, when a call has taken longer than `seconds`."""

    def __init__(self, seconds: float, bark: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._bark = bark
        self._since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._seconds:
                self._bark(f"a call of the engine did not come back within {self._seconds:g} s")
                return
