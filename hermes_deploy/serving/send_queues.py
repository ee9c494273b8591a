"""What this machine still has to send from some ports: bytes that were written, and that the other side has not taken.

A process whose writes are larger than the kernel takes keeps the rest itself, and writes it as soon as there is room.
So a connection with an empty queue has a writer with nothing left to write: but for gRPC, where a reader that takes its
time is served from the server's memory, piece by piece. Linux only: /proc/net/tcp and tcp6 of this network namespace.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_OPEN = ("01", "08")
"""ESTABLISHED and CLOSE_WAIT: the server has not closed it. After that the kernel sends the rest by itself."""


def unsent(ports: Collection[int]) -> dict[str, int]:
    """Bytes by connection, of those from local `ports` that have any."""
    found = {}
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue  # a machine without IPv6
        for line in lines:
            _, local, remote, state, queues, *_ = line.split()
            waiting = int(queues.partition(":")[0], 16)
            if waiting and state in _OPEN and int(local.rpartition(":")[2], 16) in ports:
                found[f"{local} {remote}"] = waiting
    return found


class Readers:
    """Whether anybody still takes what is sent from `ports`. `patience`: seconds in which a reader takes something."""

    def __init__(self, ports: Collection[int], patience: float) -> None:
        self._ports = ports
        self._patience = patience
        self._seen: dict[str, tuple[int, float]] = {}
        """Bytes that wait, and since when they are so many."""

    def taking(self) -> int:
        """Connections with something left to send whose reader took some of it lately."""
        now = time.monotonic()
        before = self._seen
        self._seen = {}
        for connection, waiting in unsent(self._ports).items():
            same = before.get(connection)
            self._seen[connection] = same if same is not None and same[0] == waiting else (waiting, now)
        return sum(now - since < self._patience for _, since in self._seen.values())
