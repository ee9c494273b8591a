"""Why the server ended, from its log: Triton says one thing many times, in long lines."""

from __future__ import annotations

import fcntl
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from hermes_deploy.errors import ServeError

_TAIL_BYTES = 1 << 16
_LINES = 15
_ERROR = re.compile(r"^E\d{4} \S+ \d+ \S+\] (.*)")
_OTHERS = re.compile(r"^guard: |^hermes_engine: |^Traceback|^  File |^\w*Error\b")
_TRACE = re.compile(r"(?:\\n)+At:.*")
# errors that Triton 2.51 logs where there is no GPU, and where a client closes a finished stream
_NOISE = ("CudaDriverHelper", "unable to create stream", "HandleCancellation")


def open_tail() -> IO[bytes]:
    """A file in memory, without a name, for the end of a server's log: it needs no disk and is written by appending."""
    tail = os.memfd_create("hermes-log")
    fcntl.fcntl(tail, fcntl.F_SETFL, os.O_APPEND)
    return os.fdopen(tail, "w+b", buffering=0)


def begin_log(path: str) -> None:
    """Writes the first line of a server's log, after what is there. Raises ServeError when it cannot be written."""
    try:
        with Path(path).open("ab", buffering=0) as stream:
            stream.write(f"serve: {datetime.now(UTC).isoformat(timespec='seconds')}: starting\n".encode())
    except OSError as error:
        raise ServeError(
            f"the log {path} cannot be written: {error.strerror}. Free some space, name another file with --log, or "
            "leave --log out"
        ) from None


def last_words(log: IO[bytes]) -> str:
    """What went wrong, each cause once; the last lines as they are where no line says it. "" for an empty log."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - _TAIL_BYTES))
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(_causes(lines)[-_LINES:] or lines[-_LINES:])


def _causes(lines: list[str]) -> list[str]:
    causes: list[str] = []
    for line in lines:
        error = _ERROR.match(line)
        if error is None:
            if _OTHERS.match(line):
                causes.append(line)
            continue
        cause = _TRACE.sub("", error[1].strip('"')).removeprefix("ERROR: Failed to create instance: ")
        if not any(noise in cause for noise in _NOISE) and not any(known in cause for known in causes):
            causes.append(cause)
    return causes
