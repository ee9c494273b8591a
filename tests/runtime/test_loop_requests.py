"""What a request can ask of the token loop: several answers, logprobs, priorities, reuse of what was read."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Generation, take_any
from tests.runtime.fake_session import FakeSession, expected
from tests.runtime.test_token_loop import WAIT, Gate, ask, collect, running

pytestmark = pytest.mark.usefixtures("overlaps")


class Only:
    """A constraint that allows one set of tokens."""

    def __init__(self, allowed: list[int]) -> None:
        self.allowed = allowed
        self.seen: list[int] = []

    def mask(self) -> npt.NDArray[np.uint32]:
        bits = np.zeros(4, dtype=np.uint32)
        for token in self.allowed:
            bits[token // 32] |= np.uint32(1 << (token % 32))
        return bits

    def accept(self, token: int) -> None:
        self.seen.append(token)


def test_a_constraint_limits_its_own_answer_and_hears_every_token() -> None:
    only = Only([7, 9])
    with running(FakeSession()) as loop:
        bound = loop.submit(Generation(np.array([1, 2]), 6, constraint=only))
        free = loop.submit(ask([1, 2], 6))
        tokens, _ = collect(bound)
        assert set(tokens) <= {7, 9}
        assert only.seen == tokens
        assert collect(free)[0] == expected([1, 2], 6)


def test_a_constraint_that_allows_nothing_ends_its_answer_with_the_reason() -> None:
    with running(FakeSession()) as loop:
        _, last = collect(loop.submit(Generation(np.array([1, 2]), 6, constraint=Only([]))))
        assert last.error is not None
        assert "allow no token" in str(last.error)


def test_several_answers_come_on_streams_that_are_waited_for_together_and_the_prompt_is_read_once() -> None:
    prompt = list(range(20))
    session = FakeSession(slots=3)
    with running(session) as loop:
        streams = loop.submit_all(
            [Generation(np.array(prompt), 6, Sampling(temperature=1.0, seed=3), index=i) for i in range(3)]
        )
        answers: dict[int, list[int]] = {0: [], 1: [], 2: []}
        while not all(stream.ended for stream in streams):
            taken = take_any(streams, WAIT)
            assert taken is not None
            answers[taken[0]] += taken[1].token_ids
    assert [len(answer) for answer in answers.values()] == [6, 6, 6]
    # 20 tokens are three chunks of 8; the others copy the prefix and read two tokens
    assert sum(kind == "prefill" for kind, _ in session.calls) == 5
    assert sum(kind == "copy" for kind, _ in session.calls) == 2


def test_the_second_turn_of_a_chat_says_how_much_of_it_was_in_the_cache() -> None:
    with running(FakeSession()) as loop:
        first = collect(loop.submit(ask([1, 2, 3, 4, 5], 4)))[0]
        tokens, last = collect(loop.submit(ask([1, 2, 3, 4, 5, *first, 50, 51], 4)))
        assert tokens == expected([1, 2, 3, 4, 5, *first, 50, 51], 4)
        # the last generated token was never written: it ended the answer
        assert last.reused_tokens == 5 + len(first) - 1
        assert loop.metrics.cached_prompt_tokens == last.reused_tokens
        assert loop.metrics.prompt_tokens == 5 + 11
        assert 0 < loop.metrics.prefix_hit_ratio < 1


def test_logprobs_come_one_for_each_token_and_for_each_prompt_token_but_the_first() -> None:
    prompt = np.arange(1, 30)
    with running(FakeSession(prefill_chunk=8)) as loop:
        collect(loop.submit(ask(prompt.tolist(), 2)))  # in the cache: its logits are asked for all the same
        stream = loop.submit(Generation(prompt, 5, logprobs=3, prompt_logprobs=0))
        tokens: list[int] = []
        logprobs = []
        of_prompt = []
        while not stream.ended:
            delta = stream.take(WAIT)
            assert delta is not None
            tokens += delta.token_ids
            logprobs += delta.logprobs
            of_prompt += delta.prompt_logprobs
    assert len(logprobs) == len(tokens) == 5
    assert all(
        len(one.top) == 3 and one.top[0] == (token, one.logprob) for one, token in zip(logprobs, tokens, strict=True)
    )
    assert len(of_prompt) == len(prompt) - 1
    assert all(one.top == () for one in of_prompt)


def test_min_tokens_holds_back_the_stop_token() -> None:
    answer = expected([5, 6], 10)
    stop = answer[2]
    with running(FakeSession()) as loop:
        short, last = collect(loop.submit(Generation(np.array([5, 6]), 10, stop_ids=frozenset({stop}))))
        assert (len(short), last.finish) == (2, "stop")
        longer, _ = collect(loop.submit(Generation(np.array([5, 6]), 10, stop_ids=frozenset({stop}), min_tokens=6)))
        assert len(longer) >= 6
        assert stop not in longer


def test_the_same_seed_gives_the_same_answer_whoever_else_is_there() -> None:
    session = FakeSession(slots=4)
    asked = Generation(np.array([3, 4]), 12, Sampling(temperature=5.0, seed=11))
    with running(session) as loop:
        alone, _ = collect(loop.submit(asked))
        others = [loop.submit(Generation(np.array([n]), 12, Sampling(temperature=5.0))) for n in range(3)]
        crowded, _ = collect(loop.submit(asked))
        for other in others:
            collect(other)
    assert alone == crowded
    assert len(set(alone)) > 3


def test_a_higher_priority_overtakes_the_queue() -> None:
    session = FakeSession(slots=1)
    gate, order = Gate(), []

    def watch(kind: str, slots: tuple[int, ...]) -> None:
        gate(kind, slots)
        order.extend(chat.ticket.prompt[0] for chat in loop._scheduler.running.values())

    session.before = watch
    with running(session) as loop:
        streams = [loop.submit(ask([1], 3))]
        assert gate.reached.wait(WAIT)
        streams += [loop.submit(ask([n], 3)) for n in (2, 3)]
        streams.append(loop.submit(Generation(np.array([4]), 3, priority=1)))
        gate.open.set()
        for stream in streams:
            collect(stream)
    assert list(dict.fromkeys(order)) == [1, 4, 2, 3]


def test_a_waiting_request_is_decided_before_the_engine_runs_for_it() -> None:
    """A cancelled request in the queue costs no engine call at all."""
    session = FakeSession(slots=1)
    gate = Gate()
    session.before = gate
    with running(session) as loop:
        first = loop.submit(ask([1], 3))
        assert gate.reached.wait(WAIT)
        waiting = loop.submit(ask([2] * 20, 3))
        waiting.cancel()
        gate.open.set()
        assert collect(waiting)[1].finish == "cancelled"
        collect(first)
    assert sum(kind == "prefill" for kind, _ in session.calls) == 1


def test_the_numbers_stand_at_zero_before_traffic_and_add_up_after_it() -> None:
    session = FakeSession(slots=2)
    with running(session) as loop:
        m = loop.metrics
        assert (m.queue_depth, m.active_slots, m.free_slots, m.output_tokens) == (0, 0, 2, 0)
        assert m.kv_capacity_tokens == 2 * session.max_context
        collect(loop.submit(ask([1, 2, 3], 5)))
        deadline = time.monotonic() + WAIT
        while m.active_slots and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (m.prompt_tokens, m.output_tokens, m.endings["length"]) == (3, 5, 1)
        assert sum(m.time_to_first_token.counts) == 1
        assert sum(m.inter_token_latency.counts) == 4
        assert m.kv_tokens == 0
        assert m.kv_cached_tokens == 3 + 4


def test_a_constraint_that_raises_ends_its_own_answer_with_the_cause_and_no_other() -> None:
    class Broken(Only):
        def mask(self) -> npt.NDArray[np.uint32]:
            raise KeyError("grammar")

    with running(FakeSession()) as loop:
        bound = loop.submit(Generation(np.array([1, 2]), 6, constraint=Broken([1])))
        free = loop.submit(ask([1, 2], 6))
        _, last = collect(bound)
        assert last.error is not None
        assert "KeyError: 'grammar'" in str(last.error)
        assert collect(free)[0] == expected([1, 2], 6)
