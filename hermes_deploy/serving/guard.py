"""Stands between serve and tritonserver, so that nothing outlives serve however it ends.

Run as a script in a process group of its own, so that Ctrl-C reaches serve alone; standard library only, it
starts in milliseconds:

    guard.py LIFELINE_FD RUN_FOLDER SHM_PREFIX EXIT_SECONDS LOG LOG_BYTES -- tritonserver ...

LIFELINE_FD is the read end of a pipe whose write end serve holds. End of file there (serve stopped
or was killed) or SIGTERM stops the server: SIGTERM, after EXIT_SECONDS SIGKILL. A byte on it says
that the server is ready, and its value how many model processes it has: from then on the death of
one, after which Triton stays "ready" and its callers hang, ends the server too, and so does one that
is stopped (SIGSTOP) for longer than STOPPED_SECONDS, be it the server or a model. A zero byte kills the
server at once: it is past repair. Whatever is left of the group is killed, the run folder and shared
memory removed. What the server and its models say goes through a pipe to bounded_log.py: into LOG ("" = none)
and into stdout, a memory file that serve reads. Exit status: the server's, 128 + signal, or MODEL_DIED.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

MODEL_DIED = 70
STOPPED_SECONDS = 2.0
_STUB = b"triton_python_backend_stub"
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.25
_LAST_WORDS_SECONDS = 5.0


def main(arguments: list[str], bounded_log: Any) -> int:
    """`bounded_log`: the type of that name."""
    lifeline, run_folder, shm_prefix, exit_seconds, log, log_bytes, separator, *command = arguments
    assert separator == "--", "see the docstring"
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    libc = ctypes.CDLL(None)
    said, saying = os.pipe()

    def say(line: str) -> None:
        os.write(saying, f"guard: {line}\n".encode())

    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=saying,
        stderr=saying,
        # should this process be killed itself; it has one thread, so fork is safe
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    writer = bounded_log(sys.stdout.fileno(), log or None, int(log_bytes))
    follower = threading.Thread(target=writer.follow, args=(said,), daemon=True)
    follower.start()
    try:
        died = _watch(server, int(lifeline), lambda: stopping, say)
        status = _end(server, float(exit_seconds), say)
    finally:
        kill_group(os.getpid())
        sweep(Path(run_folder), shm_prefix)
        # nobody else is left who could write: its last words, up to the end
        os.close(saying)
        follower.join(_LAST_WORDS_SECONDS)
    if died:
        return MODEL_DIED
    return 128 - status if status < 0 else status


def kill_group(group: int, mark: str = "") -> None:
    """Ends every process of that group but this one; with `mark` only those that have it on their command line.

    Model processes do not end by themselves when tritonserver is killed: one that was just telling it a metric
    waits for ever, and holds Python's lock.
    """
    for pid in _group(group):
        if mark.encode() in _read(pid, "cmdline"):
            _kill(pid)


def sweep(run_folder: Path, shm_prefix: str) -> None:
    """Removes what a server of that run folder leaves in the file system."""
    shutil.rmtree(run_folder, ignore_errors=True)
    for segment in Path("/dev/shm").glob(f"{shm_prefix}*"):
        segment.unlink(missing_ok=True)


def _watch(
    server: subprocess.Popen[bytes], lifeline: int, stopping: Callable[[], bool], say: Callable[[str], None]
) -> bool:
    """Returns when the server ended or has to; True when a model process died."""
    expected = 0
    models: set[int] = set()
    running = time.monotonic()
    while server.poll() is None and not stopping():
        readable, _, _ = select.select([lifeline], [], [], _POLL_SECONDS)
        if readable:
            told = os.read(lifeline, 1)
            if not told:
                return False
            expected = told[0]
            if not expected:
                server.kill()
                return False
            models = {pid for pid in _group(os.getpid()) if _STUB in _read(pid, "cmdline")}
        alive = sum(_alive(pid) for pid in models)
        if alive < expected:
            say(f"{expected - alive} of {expected} model processes died; Triton does not restart them.")
            server.kill()
            return True
        stopped = [pid for pid in (server.pid, *models) if _fields(pid)[:1] == ["T"]]
        if not stopped:
            running = time.monotonic()
        elif expected and time.monotonic() - running > STOPPED_SECONDS:
            who = "tritonserver" if server.pid in stopped else f"{len(stopped)} of {expected} model processes"
            say(f"{who} was stopped by a signal (SIGSTOP) and stayed so for {STOPPED_SECONDS:g} s.")
            server.kill()
            return True
    return False


def _end(server: subprocess.Popen[bytes], seconds: float, say: Callable[[str], None]) -> int:
    """Stops the server; its return code."""
    if server.poll() is None:
        server.terminate()
        try:
            return server.wait(seconds)
        except subprocess.TimeoutExpired:
            say(f"tritonserver did not stop within {seconds:g} s; killing it")
            server.kill()
    return server.wait()


def _group(group: int) -> list[int]:
    """Live processes of that group, without this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            fields = _fields(int(entry.name))
            if fields and fields[2] == str(group) and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _alive(pid: int) -> bool:
    fields = _fields(pid)
    return bool(fields) and fields[0] != "Z"


def _fields(pid: int) -> list[str]:
    """state, ppid, pgrp, session, … of /proc/PID/stat; empty when there is no such process."""
    return _read(pid, "stat").rpartition(b")")[2].decode().split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    # by its path: the package itself is not on this process's
    beside = runpy.run_path(str(Path(__file__).with_name("bounded_log.py")))
    sys.exit(main(sys.argv[1:], beside["BoundedLog"]))
