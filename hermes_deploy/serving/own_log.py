"""How `serve` writes its own messages: lines of text, or one JSON object a line. On stderr; Triton's log is its own."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

ROOT = "hermes_deploy"


class JsonLines(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …}`, time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(form: str, level: str) -> None:
    """Sends what this package logs to stderr. `form`: text or json; `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if form == "json" else text)
    ours = logging.getLogger(ROOT)
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
