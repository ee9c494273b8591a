"""How `serve` writes its own messages: lines of text, or one JSON object a line. On stderr; Triton's log is its own.

A write that fails, as on a full disk, is nobody's failure: lines that were lost are counted, and the next one that can
be written says how many.

A record may bring `facts`, a mapping of names to plain values: keys of the JSON object, or `name=value` after the text.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import IO

ROOT = "hermes_deploy"


class JsonLines(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …}` and the facts, time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextLines(logging.Formatter):
    """`12:34:56 INFO message name=value …`; a value is written as in JSON, so that none can break the line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        return " ".join([super().formatMessage(record), *(f"{name}={json.dumps(v)}" for name, v in facts.items())])


class CountingLines(logging.Handler):
    """Writes each line straight to the descriptor of `stream`: a buffer would keep what could not be written."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # as logging's own handlers do: a wrong call is told, and ends nothing
            self.handleError(record)
            return
        try:
            if self._lost:
                self._write(("\n" if self._torn else "") + self.format(self._note()) + "\n")
                self._lost, self._torn = 0, False
            self._write(line + "\n")
        except OSError:
            self._lost += 1

    def _note(self) -> logging.LogRecord:
        words = "%d lines of this log could not be written and are lost"
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, (self._lost,), None)

    def _write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        descriptor = self._stream.fileno()
        while data:
            written = os.write(descriptor, data)
            self._torn = data[written - 1 : written] != b"\n"
            data = data[written:]


def configure(form: str, level: str) -> None:
    """Sends what this package logs to stderr. `form`: text or json; `level`: debug, info, warning or error."""
    handler = CountingLines(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    ours = logging.getLogger(ROOT)
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
