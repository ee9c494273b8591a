"""Guesses that are checked several at a time give what one token after the other gives, whatever is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime import token_loop
from hermes_deploy.runtime.drafter import Drafter
from hermes_deploy.runtime.sampling import Sampling, TokenLogprobs
from hermes_deploy.runtime.stream import Finish, Generation, TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.runtime.fake_session import FakeSession
from tests.runtime.test_token_loop import WAIT, ask, collect

PERIOD = 7


class Copying(FakeSession):
    """Says what stood `PERIOD` tokens before, and every few tokens something else: which, the whole row decides.

    `checks`: draft lengths. `end`: behind the last position that a check wrote."""

    def __init__(self, *, slots: int = 2, max_context: int = 200, prefill_chunk: int = 8, sharp: float = 6.0) -> None:
        super().__init__(
            slots=slots, max_context=max_context, vocab_size=24, prefill_chunk=prefill_chunk, draft_tokens=7
        )
        self.checks: list[int] = []
        self.end = 0
        self.sharp = sharp

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        if logits > 1:
            self.checks.append(len(tokens) - 1)
            self.end = start + len(tokens)
        return self.spoil(super().prefill(slot, tokens, start, logits))

    def _logits(self, slot: int, length: int) -> npt.NDArray[np.float32]:
        row = self._rows[slot, :length]
        state = int((row * np.arange(1, length + 1)).sum())
        logits = np.random.default_rng(state).normal(size=self.vocab_size).astype(np.float32)
        if state % 5 and length >= PERIOD:
            logits[row[-PERIOD]] += self.sharp
        return logits


def everything(drafter: Drafter, most: int, stop_ids: Collection[int]) -> list[int]:
    """Whatever is guessed is checked, whether it pays or not."""
    count = len(drafter.chances(most))
    guesses = drafter.draft(count) if count else []
    return guesses[: next((at for at, token in enumerate(guesses) if token in stop_ids), None)]


@pytest.fixture(autouse=True, params=["what-pays", "everything"])
def _checked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "everything":
        monkeypatch.setattr(token_loop, "draft_of", everything)


@pytest.fixture
def session() -> Copying:
    return Copying()


@pytest.fixture
def loop(session: Copying) -> Iterator[TokenLoop]:
    made = TokenLoop(session)
    yield made
    made.close()


def answer(stream: TokenStream) -> tuple[list[int], list[TokenLogprobs], Finish | None, str]:
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    while True:
        delta = stream.take(WAIT)
        assert delta is not None, "the stream hangs"
        tokens += delta.token_ids
        logprobs += delta.logprobs
        if delta.finish:
            return tokens, logprobs, delta.finish, str(delta.error or "")


def answers(asked: list[Generation], session: Copying, **options: bool) -> list[Any]:
    """One after the other."""
    loop = TokenLoop(session, **options)
    try:
        return [answer(loop.submit(one)) for one in asked]
    finally:
        loop.close()


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 99),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.2]),
    logit_bias=st.sampled_from([(), ((3, 2.0), (5, -100.0))]),
    bad_words=st.sampled_from([(), ((4, 6),), ((2,), (7, 8, 9))]),
)
generations = st.builds(
    Generation,
    prompt=st.lists(st.integers(0, 23), min_size=1, max_size=20).map(lambda p: np.array(p * 2, dtype=np.int64)),
    max_tokens=st.integers(4, 60),
    sampling=samplings,
    stop_ids=st.sampled_from([frozenset[int](), frozenset({11}), frozenset({1, 2, 3})]),
    min_tokens=st.integers(0, 4),
    index=st.integers(0, 2),
    logprobs=st.sampled_from([None, 0, 3]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(generations, min_size=1, max_size=3))
def test_answers_ends_and_log_probabilities_are_those_of_one_token_after_the_other(asked: list[Generation]) -> None:
    without = Copying()
    expected = answers(asked, without, speculation=False)
    assert without.checks == []
    assert answers(asked, Copying()) == expected


def test_most_of_a_copied_text_comes_without_a_step_of_its_own(loop: TokenLoop, session: Copying) -> None:
    tokens, _ = collect(loop.submit(ask(list(range(PERIOD)) * 2, 100)))
    assert len(tokens) == 100
    assert loop.metrics.drafted_tokens == sum(session.checks) > 60
    assert 50 < loop.metrics.accepted_tokens <= loop.metrics.drafted_tokens
    decodes = sum(kind == "decode" for kind, _ in session.calls)
    assert decodes + len(session.checks) + loop.metrics.accepted_tokens == 99
    assert loop.metrics.output_tokens == 100


def test_no_token_is_checked_that_the_answer_has_no_room_for(loop: TokenLoop, session: Copying) -> None:
    session.sharp = 60.0
    for room in range(1, 30):
        tokens, last = collect(loop.submit(ask([*range(PERIOD), room % 24] * 2, room)))
        assert (len(tokens), last.finish) == (room, "length")
        # the last token is never written
        assert session.end <= 2 * (PERIOD + 1) + room - 1
    assert session.checks
    full, last = collect(loop.submit(ask(list(range(PERIOD)) * 27, 10_000)))
    assert (len(full), last.finish) == (200 - 7 * 27, "length")


def test_where_chats_run_beside_each_other_nothing_is_guessed(session: Copying) -> None:
    both = threading.Event()

    def hold(kind: str, slots: tuple[int, ...]) -> None:
        if kind == "decode" and len(slots) == 1:
            assert both.wait(WAIT)

    session.before = hold
    loop = TokenLoop(session)
    prompts = [list(range(PERIOD)) * 2, list(range(PERIOD, 2 * PERIOD)) * 2]
    streams = [loop.submit(ask(prompt, 60)) for prompt in prompts]
    both.set()
    found = [collect(stream)[0] for stream in streams]
    loop.close()
    alone = Copying()
    assert [tokens for tokens, *_ in answers([ask(p, 60) for p in prompts], alone, speculation=False)] == found
    together = [i for i, (kind, slots) in enumerate(session.calls) if (kind, len(slots)) == ("decode", 2)]
    checks = [i for i, (kind, _) in enumerate(session.calls) if kind == "prefill"][4:]
    assert together
    assert all(not together[0] < i < together[-1] for i in checks)


def test_a_chat_whose_neighbour_has_gone_guesses_again_and_says_the_same(loop: TokenLoop, session: Copying) -> None:
    long, short = ask(list(range(PERIOD)) * 2, 120), ask([5, 6, 7, 8], 20)
    streams = [loop.submit(one) for one in (long, short)]
    tokens, _ = collect(streams[0])
    collect(streams[1])
    assert session.checks
    assert tokens == answers([long], Copying(), speculation=False)[0][0]


def test_a_cache_row_holds_the_chat_and_nothing_that_was_rejected(loop: TokenLoop) -> None:
    prompt = list(range(PERIOD)) * 2
    tokens, _ = collect(loop.submit(ask(prompt, 80)))
    assert loop.metrics.accepted_tokens < loop.metrics.drafted_tokens
    # the last token was never written
    assert loop._scheduler.rows[0].tokens.tolist() == [*prompt, *tokens[:-1]]
    second = [*prompt, *tokens, 20, 21]
    again, last = collect(loop.submit(ask(second, 40)))
    assert last.reused_tokens == len(prompt) + len(tokens) - 1
    assert again == answers([ask(second, 40)], Copying(), speculation=False)[0][0]


def test_a_prefix_that_is_copied_from_a_row_with_rejected_tokens_is_right(loop: TokenLoop) -> None:
    prompt = list(range(PERIOD)) * 2
    stream = loop.submit(ask(prompt, 150))
    taken: list[int] = []
    while len(taken) < 30:
        delta = stream.take(WAIT)
        assert delta is not None
        taken += delta.token_ids
    branch = ask([*prompt, *taken, 20, 21], 30)
    assert collect(loop.submit(branch))[0] == answers([branch], Copying(), speculation=False)[0][0]


def test_a_cancelled_chat_ends_within_the_draft_that_is_being_checked(session: Copying) -> None:
    stream: list[TokenStream] = []
    ready = threading.Event()

    def cancel(kind: str, _slots: tuple[int, ...]) -> None:
        assert ready.wait(WAIT)
        if kind == "prefill" and session.checks:
            stream[0].cancel()

    session.before = cancel
    session.sharp = 60.0
    loop = TokenLoop(session)
    stream.append(loop.submit(ask(list(range(PERIOD)) * 2, 100)))
    ready.set()
    tokens, _, finish, _ = answer(stream[0])
    assert finish == "cancelled"
    calls = len(session.calls)
    assert collect(loop.submit(ask([3, 4], 1)))[1].finish == "length"
    loop.close()
    # one token of the check that was on its way, and no further call for it
    assert len(session.checks) == 1
    assert len(session.calls) == calls + 1
    decodes = sum(kind == "decode" for kind, _ in session.calls)
    assert len(tokens) == 1 + decodes + 1


def test_a_check_that_fails_ends_its_chat_with_the_cause_and_the_loop_goes_on(session: Copying) -> None:
    def fail(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "prefill" and session.checks:
            session.before = lambda _kind, _slots: None
            raise OSError("no room")

    session.before = fail
    loop = TokenLoop(session)
    error = collect(loop.submit(ask(list(range(PERIOD)) * 2, 100)))[1].error
    assert isinstance(error, RequestError)
    assert "failed while checking a draft: OSError: no room" in str(error)
    # nobody knows what the row holds
    assert loop._scheduler.rows[0].length == 0
    assert collect(loop.submit(ask([3, 4], 5)))[1].finish == "length"
    loop.close()


def test_checks_that_fail_again_and_again_end_the_engine(session: Copying) -> None:
    def fail(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "prefill" and session.checks[checked:]:
            raise OSError("no room")

    checked, died = 0, threading.Event()
    session.before = fail
    loop = TokenLoop(session, on_death=lambda _cause: died.set())
    for _ in range(3):
        checked = len(session.checks)
        collect(loop.submit(ask(list(range(PERIOD)) * 2, 100)))
    assert died.wait(WAIT)
    assert loop.dead is not None
    assert "3 of its calls in a row failed" in loop.dead


def test_logits_of_a_check_that_are_not_numbers_end_the_chat_behind_what_was_right(session: Copying) -> None:
    session.sharp = 60.0

    def spoil(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if len(logits) > 3 and session.checks:
            logits[2] = np.nan
        return logits

    session.spoil = spoil
    whole = answers([ask(list(range(PERIOD)) * 2, 100)], Copying(sharp=60.0), speculation=False)[0][0]
    tokens, _, finish, error = answers([ask(list(range(PERIOD)) * 2, 100)], session)[0]
    assert finish == "error"
    assert f"not finite at position {14 + len(tokens)}" in error
    assert tokens == whole[: len(tokens)]


def test_a_constraint_hears_the_tokens_of_the_answer_and_no_guess(loop: TokenLoop, session: Copying) -> None:
    class Even:
        def __init__(self) -> None:
            self.heard: list[int] = []

        def mask(self) -> npt.NDArray[np.uint32]:
            return np.array([0x5555_5555], dtype=np.uint32)

        def accept(self, token: int) -> None:
            self.heard.append(token)

    even = Even()
    tokens, _ = collect(loop.submit(Generation(np.array([*range(PERIOD)] * 2), 60, constraint=even)))
    assert session.checks
    assert even.heard == tokens
    assert all(token % 2 == 0 for token in tokens)


def test_a_receiver_gets_what_was_checked_together_in_one_piece(session: Copying) -> None:
    session.sharp = 60.0
    session.before = lambda _kind, _slots: time.sleep(0.002)  # as an engine computes: the receiver comes to its turn
    loop = TokenLoop(session)
    stream = loop.submit(ask(list(range(PERIOD)) * 2, 100))
    pieces = []
    while not stream.ended:
        delta = stream.take(WAIT)
        assert delta is not None
        pieces.append(len(delta.token_ids))
    loop.close()
    assert sum(pieces) == 100
    assert max(pieces) > 1


def test_a_session_that_checks_nothing_is_asked_for_nothing() -> None:
    session = Copying()
    session.draft_tokens = 0
    assert answers([ask(list(range(PERIOD)) * 2, 60)], session)[0][2] == "length"
    assert session.checks == []
