"""How a running server is emptied before it is stopped, so that no stream is cut without a word.

Triton 2.51 truncates ensemble streams that are in flight when it gets SIGTERM, with no error and no last piece. So
the engine is emptied first: it refuses what is new, what runs goes on until `until`, and then ends in-band. After
the engine's last piece Triton still has to deliver it: `settled` waits until its counters stand still, and until the
doormen (doorman.py) have given every answer over HTTP to its caller, who may read slowly.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from hermes_deploy.runtime.running_chat import Progress
from hermes_deploy.serving.control import Command, ControlSilent, ask
from hermes_deploy.serving.send_queues import Readers

RETRY_SECONDS = 5
"""What those who are refused are told: about what a new server takes to come up where this one was."""
REFUSED = f"the server is draining and takes no new requests. Retry after {RETRY_SECONDS} s, or at another server."

_POLL = 0.1
_QUIET = 1.0
"""Seconds without a change in Triton's counters after which all is delivered."""
_SETTLE_SECONDS = 8.0
_PATIENCE = 3.0
"""Seconds after which a gRPC reader who has taken nothing counts as one who does not read, and is not waited for."""


class Draining:
    """`control`: the engine's socket; `metrics`: URL of Triton's metrics. `owing`: how many are still being given
    their answer over HTTP. `grpc_port`: on which the others are."""

    def __init__(self, control: Path, metrics: str, owing: Callable[[], int], grpc_port: int) -> None:
        self._control = control
        self._metrics = metrics
        self._owing = owing
        self._readers = Readers((grpc_port,), _PATIENCE)

    def refuse(self) -> int:
        """New requests are refused from here on; how many run or wait."""
        return _count(self._ask("drain", REFUSED))

    def emptied(self, until: float, end: str = "") -> int:
        """Waits until nothing runs, or `until` (time.monotonic()); how many are left.

        With `end`, what runs is ended in-band with that text. Either is said again and again, for the engine may
        not have heard it.
        """
        while True:
            left = _count(self._ask("end", end) if end else self._ask("drain", REFUSED))
            if not left or time.monotonic() >= until:
                return left
            time.sleep(_POLL)

    def settled(self, until: float) -> bool:
        """Waits until what the engine gave Triton is delivered, or `until`, but 8 s in any case; whether it is.

        Where the engine is faster than the post step of the ensemble, thousands of pieces can be on their way.
        """
        until = max(until, time.monotonic() + _SETTLE_SECONDS)
        before, since = _counters(self._metrics), time.monotonic()
        while time.monotonic() < until:
            time.sleep(_POLL)
            now, owed = _counters(self._metrics), self._owing() + self._readers.taking()
            if now != before or owed:
                before, since = now, time.monotonic()
            elif time.monotonic() - since >= _QUIET:
                return True
        return False

    def _ask(self, command: Command, why: str = "") -> Progress | None:
        try:
            return ask(self._control, command, why, timeout=2.0)
        except ControlSilent:
            return None  # it cannot say: wait as if it were at work


def _count(engine: Progress | None) -> int:
    if engine is None:
        return 1
    return 0 if engine.dead is not None else engine.active + engine.waiting


def _counters(metrics: str) -> list[str]:
    """Triton's own counts of requests and executions, as lines of text; empty when it does not answer."""
    try:
        with urllib.request.urlopen(metrics, timeout=1.0) as answer:
            text = answer.read().decode()
    except OSError:
        return []
    return [line for line in text.splitlines() if line.startswith("nv_inference_") and "duration" not in line]
