"""Many chats share one engine and each gets its own answer, or hears why not. On a deterministic fake."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Delta, Finish, Generation, TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.runtime.fake_session import FakeSession, expected

pytestmark = pytest.mark.usefixtures("overlaps")

WAIT = 10.0
"""Seconds after which a hang is a failure; nothing here takes a hundredth of it."""


@contextmanager
def running(session: FakeSession, queue_limit: int = 64) -> Iterator[TokenLoop]:
    loop = TokenLoop(session, queue_limit=queue_limit)
    try:
        yield loop
    finally:
        loop.close()


def ask(prompt: list[int], max_tokens: int = 10, stop_ids: tuple[int, ...] = ()) -> Generation:
    return Generation(np.array(prompt, dtype=np.int64), max_tokens, Sampling(), frozenset(stop_ids))


def collect(stream: TokenStream) -> tuple[list[int], Delta]:
    """All tokens, and the last delta."""
    tokens: list[int] = []
    while True:
        delta = stream.take(WAIT)
        assert delta is not None, "the stream hangs"
        tokens += delta.token_ids
        if delta.finish:
            return tokens, delta


def finish(stream: TokenStream) -> Finish | None:
    return collect(stream)[1].finish


class Gate:
    """Holds the engine before a call until told to go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, _kind: str, _slots: tuple[int, ...]) -> None:
        self.reached.set()
        assert self.open.wait(WAIT)


def test_chats_of_all_lengths_share_the_slots_and_none_sees_anothers_tokens(overlaps: bool) -> None:
    rng = np.random.default_rng(0)
    asked = [
        (rng.integers(0, 100, int(n)).tolist(), int(m))
        for n, m in zip(rng.integers(1, 40, 25), rng.integers(1, 20, 25), strict=True)
    ]
    session = FakeSession()
    with running(session) as loop:
        streams = [loop.submit(ask(prompt, count)) for prompt, count in asked]
        for (prompt, count), stream in zip(asked, streams, strict=True):
            tokens, last = collect(stream)
            assert (tokens, last.finish) == (expected(prompt, count), "length")
    # beside each other it is a matter of time whether two meet
    assert overlaps or any(len(slots) > 1 for kind, slots in session.calls if kind == "decode")


@pytest.mark.parametrize("overlaps", [False], indirect=True, ids=["turns"])
def test_a_chat_that_decodes_gets_on_while_a_long_prompt_is_read_in() -> None:
    session = FakeSession()
    gate = Gate()
    session.before = gate
    with running(session) as loop:
        first = loop.submit(ask([1, 2], 30))
        assert gate.reached.wait(WAIT)
        second = loop.submit(ask([3] * 40, 1))
        gate.open.set()
        collect(first)
        collect(second)
    kinds = [kind for kind, _ in session.calls]
    # 40 tokens are 5 chunks; between any two of them the first chat got a token
    chunks = [i for i, (kind, slots) in enumerate(session.calls) if kind == "prefill" and slots == (1,)]
    assert len(chunks) == 5
    assert all("decode" in kinds[a:b] for a, b in pairwise(chunks))


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it() -> None:
    answer = expected([5, 6], 10)
    stop = answer[4]
    with running(FakeSession()) as loop:
        tokens, last = collect(loop.submit(ask([5, 6], stop_ids=(stop,))))
    assert (tokens, last.finish) == (answer[: answer.index(stop)], "stop")


def test_the_end_of_the_context_ends_the_answer() -> None:
    with running(FakeSession(max_context=16)) as loop:
        tokens, last = collect(loop.submit(ask([1] * 10, 1000)))
    assert (tokens, last.finish) == (expected([1] * 10, 6), "length")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ask([]), "no tokens"),
        (ask([1], max_tokens=0), "max_tokens is 0"),
        (ask([1, 100]), "token id 100; this model has ids 0 to 99"),
        (ask([-1, 2]), "token id -1"),
    ],
)
def test_a_request_that_can_never_run_is_refused_at_once(asked: Generation, message: str) -> None:
    with running(FakeSession()) as loop, pytest.raises(RequestError, match=message) as refused:
        loop.submit(asked)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers() -> None:
    with running(FakeSession()) as loop:
        with pytest.raises(RequestError, match="the prompt has 64 tokens; the context of this server is 64") as refused:
            loop.submit(ask([1] * 64))
        assert refused.value.code == "OUT_OF_RANGE"
        assert collect(loop.submit(ask([1] * 63)))[1].finish == "length"


def test_over_the_queue_the_caller_is_told_at_once_and_room_comes_back() -> None:
    session = FakeSession(slots=1)
    gate = Gate()
    session.before = gate
    with running(session, queue_limit=2) as loop:
        streams = [loop.submit(ask([1]))]
        assert gate.reached.wait(WAIT)
        streams += [loop.submit(ask([n])) for n in (2, 3)]
        with pytest.raises(RequestError, match="1 chats are running and 2 are waiting") as refused:
            loop.submit(ask([4]))
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        gate.open.set()
        assert [collect(stream)[0] for stream in streams] == [expected([n], 10) for n in (1, 2, 3)]
        assert collect(loop.submit(ask([4])))[0] == expected([4], 10)


def test_cancelling_frees_the_slot_for_the_next_in_the_queue() -> None:
    session = FakeSession(slots=1, max_context=1 << 16)
    with running(session) as loop:
        endless = loop.submit(ask([1], 1 << 15))
        waiting, given_up = loop.submit(ask([2], 3)), loop.submit(ask([3], 3))
        assert endless.take(WAIT) is not None
        given_up.cancel()
        assert finish(given_up) == "cancelled"
        endless.cancel()
        assert finish(endless) == "cancelled"
        assert collect(waiting)[0] == expected([2], 3)


def test_a_receiver_that_takes_nothing_slows_nobody_and_gets_everything_at_once() -> None:
    with running(FakeSession()) as loop:
        slow, quick = loop.submit(ask([1], 8)), loop.submit(ask([2], 20))
        assert finish(quick) == "length"
        delta = slow.take(WAIT)
    assert delta == Delta(tuple(expected([1], 8)), "length")


@pytest.mark.parametrize("overlaps", [False], indirect=True, ids=["turns"])
def test_logits_that_are_not_numbers_end_that_chat_alone_with_the_cause() -> None:
    session = FakeSession()

    def spoil(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if len(logits) == 2:
            logits[0] = np.nan
        return logits

    session.spoil = spoil
    gate = Gate()
    session.before = gate
    with running(session) as loop:
        bad, good = loop.submit(ask([1], 20)), loop.submit(ask([2], 20))
        gate.open.set()
        _, last = collect(bad)
        assert last.error is not None
        assert last.error.code == "INTERNAL"
        assert "not finite" in str(last.error)
        assert collect(good)[0] == expected([2], 20)


def test_an_engine_call_that_fails_ends_those_that_were_in_it_and_the_loop_goes_on() -> None:
    session = FakeSession()

    def fail(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "decode":
            session.before = lambda _kind, _slots: None
            raise OSError("the disk is gone")

    session.before = fail
    with running(session) as loop:
        _, last = collect(loop.submit(ask([1])))
        assert last.finish == "error"
        assert "OSError: the disk is gone" in str(last.error)
        assert collect(loop.submit(ask([2])))[0] == expected([2], 10)


def test_a_prompt_that_the_engine_cannot_read_ends_that_chat_alone() -> None:
    session = FakeSession()

    gate = Gate()

    def fail(kind: str, slots: tuple[int, ...]) -> None:
        gate(kind, slots)
        if kind == "prefill" and slots == (1,):
            raise RuntimeError("bad row")

    session.before = fail
    with running(session) as loop:
        good, bad = loop.submit(ask([1], 30)), loop.submit(ask([2]))
        gate.open.set()
        assert "RuntimeError: bad row" in str(collect(bad)[1].error)
        assert collect(good)[0] == expected([1], 30)


def test_a_loop_that_died_says_so_to_everyone(capfd: pytest.CaptureFixture[str]) -> None:
    session = FakeSession()
    # an engine that breaks its contract: two rows of logits for one chat
    session.spoil = lambda logits: np.concatenate([logits, logits])
    loop = TokenLoop(session)
    _, last = collect(loop.submit(ask([1])))
    assert last.error is not None
    assert last.error.code == "UNAVAILABLE"
    assert "the engine died: " in str(last.error)
    assert session.closed.wait(WAIT)
    with pytest.raises(RequestError, match="the engine is dead"):
        loop.submit(ask([2]))
    assert "Traceback" in capfd.readouterr().err


def test_closing_tells_everyone_in_flight_and_closes_the_engine() -> None:
    session = FakeSession(slots=1, max_context=1 << 16)
    loop = TokenLoop(session)
    streams = [loop.submit(ask([n], 1 << 15)) for n in (1, 2)]
    loop.close()
    for stream in streams:
        assert "shutting down" in str(collect(stream)[1].error)
    assert session.closed.is_set()
    with pytest.raises(RequestError, match="shutting down"):
        loop.submit(ask([3]))
