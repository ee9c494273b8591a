"""Triton's log: from a pipe into a file that never grows over its limit, and into memory for the last words.

Whoever writes into the pipe never hears that a disk is full: Triton's own stream would be broken for good by one failed
write, and a failed `print` in a model would leave its caller without an answer. What the file cannot take is counted by
the line, and said in the file as soon as it takes something again.

Standard library only: the guard runs it (guard.py), in a thread, so that nobody's pipe fills up while serve is stopped.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

TAIL_BYTES = 1 << 18
"""That the memory keeps at least; at most twice as much."""
_RETRY_SECONDS = 1.0
_AT_ONCE = 1 << 14
"""Bytes: read, and the longest line. Both together are what one write brings, and no more than a file may hold."""


class BoundedLog:
    """`tail`: descriptor of a memory file, opened for appending. `path`: None = the tail alone.

    `most`: bytes that the file and the older one beside it (`path`.1) take together.
    """

    def __init__(self, tail: int, path: str | None, most: int) -> None:
        self._tail = tail
        self._path = path
        self._half = most // 2
        self._file: int | None = None
        self._lost = 0
        self._why = ""
        self._torn = False
        self._retry = 0.0

    def follow(self, pipe: int) -> None:
        """Until everybody has closed the other end. Whole lines, so that none is cut where a file ends."""
        begun = b""
        while data := os.read(pipe, _AT_ONCE):
            lines, end, begun = (begun + data).rpartition(b"\n")
            if lines or end:
                self.write(lines + end)
            if len(begun) > _AT_ONCE:
                self.write(begun + b"\n")
                begun = b""
        if begun:
            self.write(begun + b"\n")
        self._retry = 0.0
        if self._lost:
            self.write(b"")

    def write(self, lines: bytes) -> None:
        """Never raises OSError."""
        self._remember(lines)
        if self._path is None:
            return
        if self._lost and time.monotonic() < self._retry:
            self._lost += lines.count(b"\n")
            return
        data = self._note() + lines
        written = 0
        try:
            file = self._ready(len(data))
            while written < len(data):
                written += os.write(file, data[written:])
            self._lost, self._torn = 0, False
        except OSError as error:
            self._lost = self._lost_of(data, written, lines)
            self._why = error.strerror or str(error)
            self._retry = time.monotonic() + _RETRY_SECONDS
            self._close()

    def _note(self) -> bytes:
        if not self._lost:
            return b""
        torn = "\n" if self._torn else ""
        return f"{torn}guard: {self._lost} lines of this log were lost: {self._why}\n".encode()

    def _lost_of(self, data: bytes, written: int, lines: bytes) -> int:
        """How many are lost, when only `written` bytes of `data` (a note, then `lines`) came into the file."""
        note = len(data) - len(lines)
        if written:
            self._torn = data[written - 1 : written] != b"\n"
        before = self._lost if written < note else 0
        return before + lines[max(0, written - note) :].count(b"\n")

    def _ready(self, more: int) -> int:
        """A descriptor for so many more bytes; the file becomes the older one when it would grow too large."""
        assert self._path is not None
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        now = os.fstat(self._file)
        if stat.S_ISREG(now.st_mode) and now.st_size and now.st_size + more > self._half:
            try:
                Path(self._path).replace(f"{self._path}.1")
            except OSError:  # the folder may not be written: the bound holds all the same
                os.ftruncate(self._file, 0)
                return self._file
            self._close()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _remember(self, lines: bytes) -> None:
        try:
            os.write(self._tail, lines)
            size = os.fstat(self._tail).st_size
            if size > 2 * TAIL_BYTES:
                kept = os.pread(self._tail, TAIL_BYTES, size - TAIL_BYTES)
                os.ftruncate(self._tail, 0)
                os.write(self._tail, kept)
        except OSError:  # no memory: the file may still have them
            return
