"""Says again and again that this side is still there, for all requests of a `Client` in one small call.

Each request carries a lease (wire.LEASE_MS), within which the engine must hear of its key. A process that is killed
closes its connection, which the server sees; a machine that loses its power or its network does not: then nothing
is renewed, and the lease ends the request. Several renewals fit into a lease, so that a pause of this process, or an
answer that is late, costs no stream. Standard library only.

The thread is there while something streams, and ends itself when nothing has for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

_LOG = logging.getLogger(__name__)

RENEWED_AT_ONCE = 512
"""Keys in one call; the engine takes twice as many."""


class Renewals:
    """`renew` tells the engine of keys, within `period` seconds; what it raises is logged, and the next call comes.

    `period`: seconds between two calls. Every method may be called from any thread.
    """

    def __init__(self, renew: Callable[[Sequence[str], float], None], period: float) -> None:
        self._renew = renew
        self._period = period
        self._keys: dict[str, None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, key: str) -> None:
        """Its lease begins about now: it is renewed within `period`, and from then on until it is dropped."""
        with self._changed:
            self._keys[key] = None
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="lease-renewals", daemon=True)
                self._thread.start()

    def drop(self, key: str) -> None:
        with self._changed:
            self._keys.pop(key, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        due = time.monotonic() + self._period
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, due - time.monotonic())
                if self._closed or not self._keys:
                    self._thread = None
                    return
                keys = iter(tuple(self._keys))
            due = time.monotonic() + self._period
            for some in _slices(keys):
                self._tell(some)

    def _tell(self, keys: Sequence[str]) -> None:
        try:
            self._renew(keys, self._period)
        except Exception as error:  # without this thread every later stream would lose its lease
            _LOG.warning("leases were not renewed, which is tried again in %g s: %r", self._period, error)


def _slices(keys: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(keys, RENEWED_AT_ONCE)):
        yield some
