"""One line a request, through the pipe and as `serve` writes it: who and how much, and never what was said."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.serving.faults import told_to_caller
from hermes_deploy.serving.own_log import JsonLines, TextLines
from hermes_deploy.serving.request_log import REQUESTS, RequestLog, RequestLogReader


class Written:
    """What serve would write of the lines, in either form."""

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        self.handler = logging.Handler()
        self.handler.emit = self.records.append  # type: ignore[method-assign]

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(JsonLines().format(record)) for record in self.records]

    @property
    def text(self) -> list[str]:
        return [TextLines().format(record) for record in self.records]


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    level = REQUESTS.level
    REQUESTS.addHandler(made.handler)
    REQUESTS.setLevel(logging.INFO)
    yield made
    REQUESTS.setLevel(level)
    REQUESTS.removeHandler(made.handler)


def test_a_finished_and_a_refused_request_are_a_line_each(tmp_path: Path, written: Written) -> None:
    reader = RequestLogReader(tmp_path / "requests")
    log = RequestLog(str(tmp_path / "requests"))
    story = log.story("abc", "chat", arrived=100.0)
    story.asked("alice", prompt_tokens=7)
    story.piece(0, 1, 3, "", "")
    story.piece(1, 1, 4, "", "")
    story.piece(0, 5, 0, "stop", "")
    story.piece(1, 6, 0, "length", "")
    story.finished([100.5, 101.0], [100.75, None])
    log.story("def", "ids", arrived=100.0).refused("RESOURCE_EXHAUSTED")
    reader.close()
    finished, refused = written.json
    assert finished.pop("total_s") > 0
    assert {name: finished[name] for name in finished if name not in ("time", "level", "logger")} == {
        "message": "request finished",
        "request_id": "abc",
        "door": "chat",
        "client": "alice",
        "prompt_tokens": 7,
        "cached_tokens": 4,
        "completion_tokens": 11,
        "finish_reason": "stop,length",
        "queue_s": 0.5,
        "first_token_s": 0.75,
    }
    assert (refused["message"], refused["request_id"], refused["code"]) == (
        "request refused",
        "def",
        "RESOURCE_EXHAUSTED",
    )
    assert ' INFO request finished request_id="abc" door="chat" client="alice"' in written.text[0]


def test_no_name_of_a_caller_can_break_a_line_or_fill_the_log(tmp_path: Path, written: Written) -> None:
    reader = RequestLogReader(tmp_path / "requests")
    log = RequestLog(str(tmp_path / "requests"))
    story = log.story("a\nb\x1b[31m" + "é" * 10_000, "chat", arrived=0.0)
    story.asked("x" * 10_000, prompt_tokens=1)
    story.refused("INVALID_ARGUMENT")
    reader.close()
    (line,) = written.text
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 2000


def test_content_is_a_line_of_its_own_however_long_and_only_where_it_is_wanted(
    tmp_path: Path, written: Written
) -> None:
    prompt = 'é"\\\n' * 20_000
    for content in (False, True):
        pipe = tmp_path / f"requests-{content}"
        reader = RequestLogReader(pipe, content=content)
        story = RequestLog(str(pipe), content=content).story("abc", "ids", arrived=0.0)
        story.asked("alice", prompt_tokens=1)
        if story.wants_content:
            story.prompt(prompt)
            for index, text in ((0, "one "), (1, "zwei "), (0, "two")):
                story.text(index, text)
        story.finished([1.0], [1.0])
        reader.close()
    plain, finished, content_line = written.json
    assert plain["message"] == finished["message"] == "request finished"
    assert content_line["message"] == "request content"
    assert {name: content_line[name] for name in ("request_id", "door", "client", "prompt", "answers")} == {
        "request_id": "abc",
        "door": "ids",
        "client": "alice",
        "prompt": prompt,
        "answers": ["one two", "zwei "],
    }
    assert "\n" not in written.text[2]


def test_nobody_waits_for_a_log_that_is_not_read_and_the_loss_is_told(tmp_path: Path, written: Written) -> None:
    pipe = tmp_path / "requests"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDWR)
    log = RequestLog(str(pipe))
    for number in range(5000):
        log.story(f"{number}", "chat", arrived=0.0).refused("UNAVAILABLE")
    os.set_blocking(unread, False)
    first = len(os.read(unread, 1 << 20).splitlines())
    log.story("last", "chat", arrived=0.0).refused("UNAVAILABLE")
    assert json.loads(os.read(unread, 1 << 20).splitlines()[-1])["lost"] == 5000 - first
    os.close(unread)
    assert written.records == []


def test_a_line_that_is_none_is_told_and_not_shown(tmp_path: Path, written: Written) -> None:
    reader = RequestLogReader(tmp_path / "requests")
    with (tmp_path / "requests").open("wb") as pipe:
        pipe.write(b"CANARY\n[]\n")
    reader.close()
    assert [record.levelname for record in written.records] == ["WARNING"] * 2
    assert "CANARY" not in "".join(written.text)


def test_without_a_pipe_nothing_is_written() -> None:
    RequestLog(None).story("a", "chat", arrived=0.0).refused("INTERNAL")


def test_a_fault_is_reported_without_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    def encode(text: str) -> None:
        raise ValueError(f"cannot encode {text!r}")

    asked = "CANARY"
    try:
        encode(asked)
    except ValueError as error:
        told = told_to_caller(error)
    assert "CANARY" in str(told)
    seen = capfd.readouterr().err
    assert "ValueError" in seen
    assert "in encode" in seen
    assert "CANARY" not in seen


def test_an_error_of_the_request_is_not_reported_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    error = RequestError("top_p is 2")
    assert told_to_caller(error) is error
    assert capfd.readouterr() == ("", "")


def test_the_text_form_ends_with_the_trace_of_an_exception() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines())
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    try:
        raise OSError("gone")
    except OSError:
        logger.exception("it failed", extra={"facts": {"a": 1}})
    first, *_, last = stream.getvalue().splitlines()
    assert first.endswith("ERROR it failed a=1")
    assert last == "OSError: gone"
