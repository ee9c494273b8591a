"""A chunk of a prompt is read beside the decodes: nobody waits for it, and its row is its own until it is read."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.runtime.fake_session import FakeSession, expected
from tests.runtime.test_token_loop import WAIT, ask, collect, finish, running


class HeldPrefill:
    """Holds every prefill but the first before it writes, until `open` is set."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._first = True

    def __call__(self, kind: str, _slots: tuple[int, ...]) -> None:
        if kind != "prefill":
            return
        if self._first:
            self._first = False
            return
        self.reached.set()
        assert self.open.wait(WAIT)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(slots=2, max_context=1 << 14, overlaps=True)


def test_a_running_chat_goes_on_while_a_chunk_is_read(session: FakeSession) -> None:
    held = session.before = HeldPrefill()
    with running(session) as loop:
        first = loop.submit(ask([1], 200))
        assert first.take(WAIT) is not None
        second = loop.submit(ask([2, 3], 5))
        assert held.reached.wait(WAIT)
        collect(first)  # its 200 tokens come although the engine is in the prompt of the other
        held.open.set()
        assert collect(second)[0] == expected([2, 3], 5)


def test_a_chat_that_is_cancelled_while_it_is_read_gives_its_row_only_when_it_was_read(session: FakeSession) -> None:
    held = session.before = HeldPrefill()
    with running(session) as loop:
        endless = loop.submit(ask([1], 1 << 13))
        assert endless.take(WAIT) is not None
        gone = loop.submit(ask([2] * 5, 5))
        assert held.reached.wait(WAIT)
        gone.cancel()
        third = loop.submit(ask([4, 5], 5))
        assert gone.take(0.1) is None
        assert set(loop._scheduler.running) == {0, 1}
        held.open.set()
        assert finish(gone) == "cancelled"
        assert collect(third)[0] == expected([4, 5], 5)
        endless.cancel()
        assert finish(endless) == "cancelled"


def test_a_prefill_that_never_comes_back_is_noticed_while_others_decode(session: FakeSession) -> None:
    held = session.before = HeldPrefill()
    loop = TokenLoop(session, engine_timeout=0.3)
    first = loop.submit(ask([1], 1 << 13))
    assert first.take(WAIT) is not None
    second = loop.submit(ask([2, 3], 5))
    for stream in (first, second):
        error = collect(stream)[1].error
        assert error is not None
        assert "did not come back within 0.3 s" in str(error)
    assert loop.dead is not None
    loop.close()
    held.open.set()
    assert session.closed.wait(WAIT)


def test_a_prompt_that_fails_beside_others_ends_that_chat_alone(session: FakeSession) -> None:
    def fail(kind: str, slots: tuple[int, ...]) -> None:
        if (kind, slots) == ("prefill", (1,)):
            raise OSError("bad row")

    session.before = fail
    with running(session) as loop:
        first = loop.submit(ask([1], 500))
        assert first.take(WAIT) is not None
        error = collect(loop.submit(ask([2, 3])))[1].error
        assert error is not None
        assert "OSError: bad row" in str(error)
        collect(first)
        assert loop._scheduler.rows[1].length == 0


def test_closing_waits_for_the_chunk_and_tells_everyone(session: FakeSession) -> None:
    held = session.before = HeldPrefill()
    loop = TokenLoop(session)
    first = loop.submit(ask([1], 1 << 13))
    assert first.take(WAIT) is not None
    second = loop.submit(ask([2, 3]))
    assert held.reached.wait(WAIT)
    closing = threading.Thread(target=loop.close)
    closing.start()
    assert "shutting down" in str(collect(second)[1].error)
    assert not session.closed.is_set()
    held.open.set()
    closing.join(WAIT)
    assert session.closed.is_set()
    with pytest.raises(RequestError, match="shutting down"):
        loop.submit(ask([3]))


def test_many_chats_that_come_and_go_beside_each_other_get_their_own_answers() -> None:
    rng = np.random.default_rng(7)
    session = FakeSession(slots=4, overlaps=True)
    with running(session, queue_limit=200) as loop:
        asked = [rng.integers(0, 3, rng.integers(1, 40)).tolist() for _ in range(120)]
        streams = [loop.submit(ask(prompt, 12)) for prompt in asked]
        for i, (prompt, stream) in enumerate(zip(asked, streams, strict=True)):
            if i % 5 == 4:
                stream.cancel()
                collect(stream)
            else:
                assert collect(stream)[0] == expected(prompt, 12)


def test_a_chat_can_be_ended_between_two_of_its_chunks(session: FakeSession) -> None:
    read = 0

    def count(kind: str, slots: tuple[int, ...]) -> None:
        nonlocal read
        read += (kind, slots) == ("prefill", (1,))
        if read == 3:
            reached.set()

    reached = threading.Event()
    session.before = count
    with running(session) as loop:
        endless = loop.submit(ask([1], 1 << 13))
        assert endless.take(WAIT) is not None
        long = loop.submit(ask([2] * 4000, 5))
        assert reached.wait(WAIT)
        long.cancel()
        assert finish(long) == "cancelled"
        assert read < 400
        endless.cancel()
        finish(endless)
