"""The control socket: what it says of a token loop, how it drains one, and what silence looks like."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.stream import Generation, TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.control import ControlServer, ControlSilent, _short, ask, loop_settings
from tests.runtime.fake_session import FakeSession
from tests.serving.processes import eventually

WAIT = 10.0


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(slots=1, max_context=1 << 12, vocab_size=256)


@pytest.fixture
def loop(session: FakeSession) -> Iterator[TokenLoop]:
    running = TokenLoop(session, queue_limit=4)
    yield running
    running.close()


@pytest.fixture
def control(loop: TokenLoop, tmp_path: Path) -> Iterator[Path]:
    # longer than a socket address can be
    path = tmp_path / ("folder" * 20) / "control"
    path.parent.mkdir()
    server = ControlServer(path, loop)
    yield path
    server.close()
    assert not path.exists()


def submit(loop: TokenLoop, tokens: int) -> TokenStream:
    return loop.submit(Generation(np.array([1, 2, 3]), tokens))


def hold(session: FakeSession, go_on: threading.Event) -> None:
    """Every call of the engine waits for `go_on`."""

    def before(_kind: str, _slots: tuple[int, ...]) -> None:
        assert go_on.wait(WAIT)

    session.before = before


def last_error(stream: TokenStream) -> RequestError:
    while not stream.ended:
        delta = stream.take(WAIT)
        assert delta is not None, "nobody answers"
    assert delta.error is not None
    return delta.error


def test_it_says_what_runs_and_that_calls_come_back(loop: TokenLoop, session: FakeSession, control: Path) -> None:
    assert ask(control, "status").active == 0
    go_on = threading.Event()
    hold(session, go_on)
    running, waiting = submit(loop, 5), submit(loop, 5)
    assert eventually(lambda: ask(control, "status").in_call is not None)
    seen = ask(control, "status")
    assert (seen.active, seen.waiting, seen.calls, seen.dead) == (1, 1, 0, None)
    go_on.set()
    for stream in (running, waiting):
        while not stream.ended:
            assert stream.take(WAIT)
    assert eventually(lambda: ask(control, "status").active == 0)
    seen = ask(control, "status")
    assert seen.in_call is None
    assert seen.calls == 10
    assert seen.longest_call > 0


def test_draining_refuses_what_is_new_and_lets_run_what_runs(loop: TokenLoop, control: Path) -> None:
    running = submit(loop, 2000)
    assert ask(control, "drain", "closed. Retry after 5 s.").draining
    with pytest.raises(RequestError, match=r"closed\. Retry after 5 s\.") as refused:
        submit(loop, 1)
    assert refused.value.code == "UNAVAILABLE"
    tokens = 0
    while not running.ended:
        delta = running.take(WAIT)
        assert delta is not None
        tokens += len(delta.token_ids)
    assert delta.finish == "length"
    assert tokens == 2000


def test_an_end_reaches_those_who_run_and_those_who_wait_and_frees_their_slots(loop: TokenLoop, control: Path) -> None:
    streams = [submit(loop, 4000) for _ in range(3)]
    ask(control, "end", "time is up")
    for stream in streams:
        error = last_error(stream)
        assert (str(error), error.code) == ("time is up", "UNAVAILABLE")
    assert eventually(lambda: ask(control, "status").active + ask(control, "status").waiting == 0)
    assert loop.dead is None
    with pytest.raises(RequestError, match="time is up"):
        submit(loop, 1)


def test_an_end_reaches_those_who_are_in_a_call_that_hangs(
    loop: TokenLoop, session: FakeSession, control: Path
) -> None:
    go_on = threading.Event()
    hold(session, go_on)
    stream = submit(loop, 5)
    ask(control, "end", "time is up")
    assert str(last_error(stream)) == "time is up"
    go_on.set()


def test_who_does_not_answer_is_silent_and_who_is_not_there_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "stopped"))
        stopped.listen()
        began = time.monotonic()
        with pytest.raises(ControlSilent, match=r"did not answer within 0\.2 s"):
            ask(tmp_path / "stopped", "status", timeout=0.2)
        assert time.monotonic() - began < 2
    with pytest.raises(ControlSilent, match="does not answer"):
        ask(tmp_path / "missing", "status")


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[]\n", b'{"do": "explode"}\n', b"\xff\xfe\n", b"{" * 100_000, b""])
def test_nonsense_disturbs_nobody(control: Path, line: bytes) -> None:
    with _short(control) as name, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(name)
        caller.sendall(line)
        assert ask(control, "status", timeout=WAIT).dead is None


def test_the_loop_is_set_by_the_parameters_that_are_there() -> None:
    assert loop_settings({"max_slots": "3"}) == {}
    assert loop_settings({"queue_limit": "3", "stretch": "0.5", "engine_timeout": "7.5"}) == {
        "queue_limit": 3,
        "stretch": 0.5,
        "engine_timeout": 7.5,
    }
    assert [loop_settings({"speculation": said}) for said in ("true", "false")] == [
        {"speculation": True},
        {"speculation": False},
    ]
