"""What happens at 3 a.m.: engines that fail, hang or lie, callers that vanish or ask for the impossible."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Generation, TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.runtime.fake_session import FakeSession, expected
from tests.runtime.test_token_loop import WAIT, Gate, ask, collect, finish, running

pytestmark = pytest.mark.usefixtures("overlaps")


def generation(**changes: Any) -> Generation:
    return Generation(**({"prompt": np.array([1, 2]), "max_tokens": 5} | changes))


def test_an_engine_that_fails_again_and_again_is_given_up_and_everyone_is_told() -> None:
    session = FakeSession()
    deaths: list[str] = []
    gate = Gate()

    def fail(kind: str, slots: tuple[int, ...]) -> None:
        gate(kind, slots)
        raise OSError("no space left on device")

    session.before = fail
    loop = TokenLoop(session, on_death=deaths.append)
    streams = [loop.submit(ask([n])) for n in range(6)]
    gate.open.set()
    errors = [collect(stream)[1].error for stream in streams]
    assert sum(error is not None and error.code == "INTERNAL" for error in errors) == 3
    assert all(error is not None and "no space left on device" in str(error) for error in errors)
    assert session.closed.wait(WAIT)
    assert loop.dead is not None
    assert deaths == [loop.dead]
    assert loop.metrics.healthy == 0
    with pytest.raises(RequestError, match=r"the engine is dead: 3 .* Restart the server") as refused:
        loop.submit(ask([1]))
    assert refused.value.code == "UNAVAILABLE"


def test_a_success_between_failures_keeps_the_engine() -> None:
    session = FakeSession(slots=1)
    count = 0

    def fail_every_other(kind: str, _slots: tuple[int, ...]) -> None:
        nonlocal count
        count += kind == "prefill"
        if kind == "prefill" and count % 2:
            raise OSError("flaky")

    session.before = fail_every_other
    with running(session) as loop:
        ends = [finish(loop.submit(ask([n], 3))) for n in range(10)]
        assert ends == ["error", "length"] * 5
        assert loop.dead is None
        assert loop.metrics.engine_failures == 5


def test_a_call_that_never_comes_back_is_noticed_and_nobody_waits_forever() -> None:
    session = FakeSession()
    stuck = threading.Event()
    deaths: list[str] = []

    def hang(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "decode":
            stuck.wait(WAIT)

    session.before = hang
    loop = TokenLoop(session, engine_timeout=0.2, on_death=deaths.append)
    streams = [loop.submit(ask([n])) for n in range(5)]
    errors = [collect(stream)[1].error for stream in streams]
    assert all(error is not None and error.code == "UNAVAILABLE" for error in errors)
    assert all("did not come back within 0.2 s" in str(error) for error in errors)
    assert len(deaths) == 1
    with pytest.raises(RequestError, match="dead"):
        loop.submit(ask([1]))
    loop.close()  # does not wait for the call either
    stuck.set()
    assert session.closed.wait(WAIT)


def test_a_row_whose_call_failed_is_read_again_from_its_start() -> None:
    session = FakeSession(slots=1)
    with running(session) as loop:
        assert collect(loop.submit(ask([5, 6, 7], 4)))[0] == expected([5, 6, 7], 4)

        def corrupt(kind: str, _slots: tuple[int, ...]) -> None:
            session.before = lambda _kind, _slots: None
            session._rows[:] = 99
            raise OSError(kind)

        session.before = corrupt
        assert finish(loop.submit(ask([5, 6, 7, 8]))) == "error"
        assert collect(loop.submit(ask([5, 6, 7], 4)))[0] == expected([5, 6, 7], 4)


def test_a_deadline_ends_a_running_answer_and_a_waiting_one_with_where_it_was() -> None:
    session = FakeSession(slots=1, max_context=1 << 16)
    session.before = lambda _kind, _slots: time.sleep(0.001)
    with running(session) as loop:
        soon = time.monotonic() + 0.1
        first = loop.submit(generation(max_tokens=1 << 15, deadline=soon))
        second = loop.submit(generation(max_tokens=1 << 15, deadline=soon))
        lasts = [collect(stream)[1] for stream in (first, second)]
        late = [last.error for last in lasts]
        assert [last.finish for last in lasts] == ["error", "error"]
        assert [error and error.code for error in late] == ["DEADLINE_EXCEEDED"] * 2
        assert "tokens" in str(late[0])
        assert "in the queue" in str(late[1])
        assert finish(loop.submit(generation())) == "length"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 6}, "min_tokens is 6; allowed is 0 to max_tokens, which is 5"),
        ({"logprobs": 21}, "logprobs is 21; allowed is 0 to 20"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21"),
        ({"priority": 101}, "priority is 101"),
        ({"stop_ids": frozenset({100})}, "the stop ids hold 100; this model has ids 0 to 99"),
        ({"stop_ids": frozenset({-1})}, "the stop ids hold -1"),
        ({"prompt": np.array([[1]])}, "list of token ids"),
        ({"prompt": np.array([1.5])}, "list of token ids"),
        ({"sampling": Sampling(logit_bias=((100, 1.0),))}, "100"),
        ({"sampling": Sampling(bad_words=((1, 100),))}, "100"),
    ],
    ids=str,
)
def test_what_can_never_run_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with running(FakeSession()) as loop:
        with pytest.raises(RequestError, match=message) as refused:
            loop.submit(generation(**changes))
        assert refused.value.code == "INVALID_ARGUMENT"
        assert loop.metrics.rejections["invalid"] == 1


def test_several_answers_are_queued_together_or_not_at_all() -> None:
    session = FakeSession(slots=1)
    gate = Gate()
    session.before = gate
    with running(session, queue_limit=3) as loop:
        first = loop.submit(generation())
        assert gate.reached.wait(WAIT)
        loop.submit(generation())
        with pytest.raises(RequestError, match=r"Retry after 1 s\."):
            loop.submit_all([generation()] * 3)
        assert loop.metrics.queue_depth == 1
        assert loop.metrics.rejections["queue_full"] == 1
        gate.open.set()
        assert finish(first) == "length"


def test_ten_thousand_events_leak_no_slot_and_no_memory() -> None:
    """Submit, cancel, take and finish in random order; at the end everything is free and nothing is remembered."""
    rng = np.random.default_rng(5)
    session = FakeSession(slots=4, max_context=64)
    with running(session, queue_limit=16) as loop:
        open_streams = []
        submitted = refused = 0
        for _ in range(10_000):
            kind = rng.integers(0, 4)
            if kind <= 1:
                try:
                    prompt = rng.integers(0, 100, rng.integers(1, 30))
                    late = time.monotonic() + 0.01 if rng.random() < 0.1 else None
                    asked = generation(prompt=prompt, max_tokens=int(rng.integers(1, 30)), deadline=late)
                    open_streams.append(loop.submit(asked))
                    submitted += 1
                except RequestError as error:
                    assert error.code == "RESOURCE_EXHAUSTED"
                    refused += 1
            elif open_streams and kind == 2:
                open_streams.pop(rng.integers(len(open_streams))).cancel()
            elif open_streams:
                stream = open_streams[rng.integers(len(open_streams))]
                delta = stream.take(0.001)
                if delta is not None and delta.finish:
                    open_streams.remove(stream)
        for stream in open_streams:
            stream.cancel()
        give_up = time.monotonic() + WAIT
        while loop.metrics.active_slots or loop.metrics.queue_depth:
            assert time.monotonic() < give_up, "a slot leaked"
            time.sleep(0.005)
        assert submitted > 1000
        assert refused > 0
        assert sum(loop.metrics.endings.values()) == submitted
        assert not loop._chats
        assert not loop._scheduler.running
        assert not loop._scheduler.waiting
        open_streams.clear()
        del stream
        gc.collect()
        assert sum(isinstance(found, TokenStream) for found in gc.get_objects()) <= 2
        # and the next chat is answered as if nothing had been
        assert collect(loop.submit(ask([5, 6], 10)))[0] == expected([5, 6], 10)


def test_prompt_logits_that_are_not_numbers_end_that_chat_alone() -> None:
    session = FakeSession()
    read = session.prefill

    def spoiled(slot: int, tokens: Any, start: int, logits: int = 1) -> Any:
        found = read(slot, tokens, start, logits)
        if logits > 1:
            found[0] = np.nan
        return found

    session.prefill = spoiled  # type: ignore[method-assign]
    with running(session) as loop:
        error = collect(loop.submit(generation(prompt_logprobs=2)))[1].error
        assert error is not None
        assert "not finite" in str(error)
        assert finish(loop.submit(generation())) == "length"


def test_a_prefix_that_cannot_be_copied_ends_that_chat_and_its_row_is_not_believed() -> None:
    session = FakeSession(slots=2)

    def fail_copy(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "copy":
            session._rows[:] = 99
            session.before = lambda _kind, _slots: None
            raise OSError("bus error")

    with running(session) as loop:
        prompt = [7] * 12
        collect(loop.submit(ask([*prompt, *range(20)], 4)))
        session.before = fail_copy
        error = collect(loop.submit(ask([*prompt, 50, 51], 4)))[1].error
        assert error is not None
        assert "failed to copy a prefix: OSError: bus error" in str(error)
        tokens, last = collect(loop.submit(ask([*prompt, 50, 51], 4)))
        assert (tokens, last.reused_tokens) == (expected([*prompt, 50, 51], 4), 0)


def test_what_gave_logits_that_are_not_numbers_is_read_again_wherever_it_was_copied_from() -> None:
    session = FakeSession(slots=2)
    with running(session) as loop:
        collect(loop.submit(ask([7] * 12, 4)))
        session.spoil = lambda logits: np.full_like(logits, np.nan)
        error = collect(loop.submit(ask([*[7] * 12, 50, 51], 4)))[1].error
        assert error is not None
        session.spoil = lambda logits: logits
        for prompt in ([*[7] * 12, 50, 51], [*[7] * 12, 60, 61]):
            # the second finds what the first has read anew
            tokens, last = collect(loop.submit(ask(prompt, 4)))
            assert tokens == expected(prompt, 4)
            assert last.reused_tokens == (0 if prompt[-1] == 51 else 12)


def test_a_decode_that_fails_spoils_every_row_that_was_in_it() -> None:
    session = FakeSession(slots=2, max_context=1 << 12)

    def fail(kind: str, slots: tuple[int, ...]) -> None:
        if kind == "decode" and len(slots) == 2:
            session._rows[:] = 99
            session.before = lambda _kind, _slots: None
            raise OSError("lost")

    session.before = fail
    with running(session) as loop:
        streams = [loop.submit(ask([n] * 6, 1000)) for n in (3, 4)]
        assert [finish(stream) for stream in streams] == ["error", "error"]
        for n in (3, 4):
            tokens, last = collect(loop.submit(ask([n] * 6, 4)))
            assert (tokens, last.reused_tokens) == (expected([n] * 6, 4), 0)


def test_an_engine_that_only_gives_what_is_not_a_number_is_given_up() -> None:
    session = FakeSession(slots=1)
    session.spoil = lambda logits: np.full_like(logits, np.nan)
    loop = TokenLoop(session)
    ends = [collect(loop.submit(ask([n], 4)))[1].error for n in range(3)]
    assert all(error is not None and "not finite" in str(error) for error in ends)
    assert session.closed.wait(WAIT)
    assert "no logits that are finite" in str(loop.dead)
    assert loop.metrics.active_slots == 0
