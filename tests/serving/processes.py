"""Waiting for processes and facts, for tests that say that nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

WAIT = 20.0
"""Seconds after which what should have ended has not."""


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether every one of them ends."""
    _, alive = psutil.wait_procs(processes, timeout=WAIT)
    return not alive


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
