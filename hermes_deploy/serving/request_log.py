"""One line about each request that ended or was refused, from the models' processes to `serve`, which logs it.

A line holds who and how much (request id, door, client, counts of tokens, how it ended, times), and nothing that was
asked or answered: of an error its code alone, because an error's words may quote the request. The id and the client's
name are the caller's own words; they are cut short. Only where `log_content` is set does a request have a second line,
"request content", with its prompt and its answers.

The way is a pipe in the run folder, JSON lines under PIPE_BUF bytes, so that several processes can write; a longer one
goes in parts. Nobody waits for it: what does not fit is counted, and the next line says so (`lost`). Standard library
only.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

REQUESTS = logging.getLogger("hermes_deploy.requests")

_LONGEST_NAME = 128
_FINISHED, _REFUSED, _CONTENT = "request finished", "request refused", "request content"
_WHO = ("request_id", "door", "client")
_PART, _END = "part", "end"
_PART_CHARACTERS = 1900
"""Of ASCII, of which a backslash or a quote is two in the line: it stays under PIPE_BUF."""
_CONTENT_PIPE = 1 << 20
"""Bytes that a pipe may hold without privileges."""
_MOST_PARTS = 1 << 12


class RequestLog:
    """The models' end. `pipe`: None where another server than ours runs: then nothing is written.

    `content`: whether prompts and answers are written as well.
    """

    def __init__(self, pipe: str | None, *, content: bool = False) -> None:
        self.content = content
        self._written = 0
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
            self._written += 1
            try:
                for piece in _pieces(line, f"{os.getpid()}-{self._written}"):
                    os.write(self._pipe, piece)
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
        self._prompt = ""
        self._texts: dict[int, list[str]] = {}

    @property
    def wants_content(self) -> bool:
        return self._log.content

    def prompt(self, text: str) -> None:
        """What the model was given; for those who want content."""
        self._prompt = text

    def text(self, index: int, released: str) -> None:
        """A piece of text of answer `index` that was sent; for those who want content."""
        self._texts.setdefault(index, []).append(released)

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
        if self.wants_content:
            who: dict[str, Any] = {name: self._facts[name] for name in _WHO if name in self._facts}
            answers = ["".join(self._texts[index]) for index in sorted(self._texts)]
            self._log.write(_CONTENT, {**who, "prompt": self._prompt, "answers": answers})

    def _since(self, *moments: float | None) -> float | None:
        """Seconds from the arrival to the earliest of those that are known."""
        known = [moment for moment in moments if moment is not None]
        return round(min(known) - self._arrived, 4) if known else None


def _pieces(line: str, key: str) -> Iterator[bytes]:
    """`line`, which is ASCII, in as many lines as a pipe takes whole."""
    if len(line) < 2 * _PART_CHARACTERS:
        yield line.encode() + b"\n"
        return
    for start in range(0, len(line), _PART_CHARACTERS):
        more = start + _PART_CHARACTERS < len(line)
        part = {"what": _PART, "key": key, "at": start, "data": line[start : start + _PART_CHARACTERS], "more": more}
        yield json.dumps(part).encode() + b"\n"


class _Parts:
    """Puts lines that came in parts together again. One of which a part was lost never comes."""

    def __init__(self) -> None:
        self._begun: dict[str, list[str]] = {}

    def add(self, part: dict[str, Any]) -> bytes | None:
        """The whole line, with its last part."""
        writer = part["key"].partition("-")[0]
        if part["at"] == 0:
            # a writer's parts follow each other: what it had begun before is lost
            for key in [key for key in self._begun if key.partition("-")[0] == writer]:
                del self._begun[key]
            self._begun[part["key"]] = []
        parts = self._begun.get(part["key"])
        if parts is None or sum(map(len, parts)) != part["at"] or len(parts) >= _MOST_PARTS:
            self._begun.pop(part["key"], None)
            return None
        parts.append(part["data"])
        if part["more"]:
            return None
        return "".join(self._begun.pop(part["key"])).encode()


class RequestLogReader:
    """serve's end: makes the pipe `path` and logs what comes through it, at level info, until `close`.

    `content`: lines may be long; the pipe is made as large as it can be.
    """

    def __init__(self, path: Path, *, content: bool = False) -> None:
        os.mkfifo(path, 0o600)
        # for writing too: it does not end when a model goes, and `close` can write the last line
        self._pipe = os.open(path, os.O_RDWR)
        if content:
            with suppress(OSError):  # more lines may be lost then, and are counted
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _CONTENT_PIPE)
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when everything that was written before is logged."""
        os.write(self._pipe, json.dumps({"what": _END}).encode() + b"\n")
        self._thread.join()

    def _run(self) -> None:
        parts = _Parts()
        with os.fdopen(self._pipe, "rb") as lines:
            for line in lines:
                try:
                    facts = json.loads(line)
                    if facts["what"] == _PART:
                        whole = parts.add(facts)
                        if whole is None:
                            continue
                        facts = json.loads(whole)
                    what = facts.pop("what")
                except (ValueError, TypeError, AttributeError, KeyError):
                    REQUESTS.warning("a line of %d bytes about a request cannot be read", len(line))
                    continue
                if what == _END:
                    return
                REQUESTS.log(logging.WARNING if "lost" in facts else logging.INFO, "%s", what, extra={"facts": facts})
