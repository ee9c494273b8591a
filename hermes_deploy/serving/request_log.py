"""One line about each request that ended or was refused, from the models' processes to `serve`, which logs it.

A line holds who and how much (request id, door, client, counts of tokens, how it ended, times), and by construction
nothing that was asked or answered: a `Story` takes numbers and names, and of an error its code alone, because an
error's words may quote the request. The id and the client's name are the caller's own words; they are cut short.

The way is a pipe in the run folder, JSON lines under PIPE_BUF bytes, so that several processes can write. Nobody waits
for it: what does not fit is counted, and the next line says so (`lost`). Standard library only.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REQUESTS = logging.getLogger("hermes_deploy.requests")

_LONGEST_NAME = 128
_FINISHED, _REFUSED, _END = "request finished", "request refused", "end"


class RequestLog:
    """The models' end. `pipe`: None where another server than ours runs: then nothing is written."""

    def __init__(self, pipe: str | None) -> None:
        # it is open on the other side before a model is loaded
        self._pipe = None if pipe is None else os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        self._lost = 0
        self._lock = threading.Lock()

    def story(self, request_id: str, door: str, arrived: float) -> Story:
        """`arrived`: time.monotonic()."""
        return Story(self, request_id, door, arrived)

    def write(self, what: str, facts: dict[str, Any]) -> None:
        if self._pipe is None:
            return
        with self._lock:
            line = json.dumps({"what": what, **facts, **({"lost": self._lost} if self._lost else {})})
            try:
                os.write(self._pipe, line.encode() + b"\n")
                self._lost = 0
            except OSError:  # full, or serve has gone: no answer waits for a log
                self._lost += 1

    def close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class Story:
    """What is known of one request so far. One thread."""

    def __init__(self, log: RequestLog, request_id: str, door: str, arrived: float) -> None:
        self._log = log
        self._arrived = arrived
        self._facts: dict[str, Any] = {"request_id": request_id[:_LONGEST_NAME], "door": door}
        self._completion: dict[int, int] = {}
        self._finish: dict[int, str] = {}

    def asked(self, client: str, prompt_tokens: int) -> None:
        if client:
            self._facts["client"] = client[:_LONGEST_NAME]
        self._facts |= {"prompt_tokens": prompt_tokens, "cached_tokens": 0}

    def piece(self, index: int, completion_tokens: int, cached_tokens: int, finish: str, code: str) -> None:
        """A piece of answer `index` was sent; its counts are of that answer so far."""
        self._completion[index] = completion_tokens
        self._facts["cached_tokens"] = max(self._facts["cached_tokens"], cached_tokens)
        if finish:
            self._finish[index] = finish
        if code:
            self._facts["code"] = code

    def refused(self, code: str) -> None:
        """Before it had a place in the queue."""
        self._log.write(_REFUSED, self._facts | {"code": code, "total_s": self._since(time.monotonic())})

    def finished(self, admitted: Iterable[float | None], first_token: Iterable[float | None], code: str = "") -> None:
        """`admitted`, `first_token`: when, of each answer. `code`: of a failure before the first piece."""
        if code:
            self._facts["code"] = code
        self._log.write(
            _FINISHED,
            self._facts
            | {
                "completion_tokens": sum(self._completion.values()),
                "finish_reason": ",".join(self._finish[i] for i in sorted(self._finish)) or "error",
                "queue_s": self._since(*admitted),
                "first_token_s": self._since(*first_token),
                "total_s": self._since(time.monotonic()),
            },
        )

    def _since(self, *moments: float | None) -> float | None:
        """Seconds from the arrival to the earliest of those that are known."""
        known = [moment for moment in moments if moment is not None]
        return round(min(known) - self._arrived, 4) if known else None


class RequestLogReader:
    """serve's end: makes the pipe `path` and logs what comes through it, at level info, until `close`."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        # for writing too: it does not end when a model goes, and `close` can write the last line
        self._pipe = os.open(path, os.O_RDWR)
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when everything that was written before is logged."""
        os.write(self._pipe, json.dumps({"what": _END}).encode() + b"\n")
        self._thread.join()

    def _run(self) -> None:
        with os.fdopen(self._pipe, "rb") as lines:
            for line in lines:
                try:
                    facts = json.loads(line)
                    what = facts.pop("what")
                except (ValueError, TypeError, AttributeError, KeyError):
                    REQUESTS.warning("a line of %d bytes about a request cannot be read", len(line))
                    continue
                if what == _END:
                    return
                REQUESTS.log(logging.WARNING if "lost" in facts else logging.INFO, "%s", what, extra={"facts": facts})
