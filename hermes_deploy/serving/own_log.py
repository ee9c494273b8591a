"""How `serve` writes its own messages: lines of text, or one JSON object a line. On stderr; Triton's log is its own.

A record may bring `facts`, a mapping of names to plain values: keys of the JSON object, or `name=value` after the text.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

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


def configure(form: str, level: str) -> None:
    """Sends what this package logs to stderr. `form`: text or json; `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    ours = logging.getLogger(ROOT)
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
