"""Runs a command and tells its time and its greatest memory, with and without the page cache. Linux.

`anonymous`: RssAnon + RssShmem of the whole process tree, sampled every 20 ms: what the work itself
holds, and what makes a machine run out of memory. `resident` counts also file pages that are mapped,
which the kernel takes back when it needs them. A peak between two samples is missed for
`anonymous`; `largest_process` is the kernel's own ru_maxrss and misses none, but counts file pages.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.02


@dataclass(frozen=True)
class Measured:
    """Memory in bytes; `seconds` of wall clock, `cpu_seconds` of all processes of the tree."""

    seconds: float
    cpu_seconds: float
    anonymous: int
    resident: int
    largest_process: int
    code: int
    output: str


def measure(
    command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Measured:
    """Runs `command` to its end; its standard output is kept, its standard error is the caller's."""
    peaks = {"RssAnon+RssShmem": 0, "VmRSS": 0}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_INTERVAL):
            anonymous = resident = 0
            for pid in tree(process.pid):
                memory = _status(pid)
                anonymous += memory.get("RssAnon", 0) + memory.get("RssShmem", 0)
                resident += memory.get("VmRSS", 0)
            peaks["RssAnon+RssShmem"] = max(peaks["RssAnon+RssShmem"], anonymous)
            peaks["VmRSS"] = max(peaks["VmRSS"], resident)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        over.set()
        watcher.join()
        if process.returncode is None:
            process.kill()
            process.wait()
    return Measured(
        time.perf_counter() - began,
        usage.ru_utime + usage.ru_stime,
        peaks["RssAnon+RssShmem"],
        peaks["VmRSS"],
        usage.ru_maxrss * 1024,
        process.returncode,
        output,
    )


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants that are alive."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # the thread has just ended
    return found


def _status(pid: int) -> dict[str, int]:
    """The memory lines of /proc/PID/status in bytes; empty when the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {key: int(value.removesuffix(" kB")) * 1024 for key, value in pairs}
