"""Every decision of the scheduler that production runs, driven by hypothesis over a model of the engine's cache."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermes_deploy.runtime.scheduler import Scheduler, Step, Ticket

SLOTS, CONTEXT = 3, 24


def ticket(key: int, *prompt: int, client: str = "", priority: int = 0, reuse: bool = True) -> Ticket:
    return Ticket(key, np.array(prompt, dtype=np.int64), client, priority, reuse)


class Driven(Scheduler):
    """A scheduler with the steps of a loop, and what an engine's rows would really hold."""

    def __init__(self, slots: int = SLOTS, context: int = CONTEXT) -> None:
        super().__init__(slots, context)
        self.truth = np.full((slots, context), -1, dtype=np.int64)
        self.texts: dict[int, list[int]] = {}
        self.done: list[Step] = []

    def step(self, budget: int = 4) -> Step:
        self.admit(self.admissions())
        step = self.plan(budget)
        if step.copy is not None:
            c = step.copy
            self.truth[c.target, c.start : c.start + c.count] = self.truth[c.source, c.start : c.start + c.count]
            self.copied(c)
        if step.prefill is not None:
            c = step.prefill
            prompt = self.running[c.key].ticket.prompt
            self.truth[c.slot, c.start : c.start + c.count] = prompt[c.start : c.start + c.count]
            self.prefilled(c)
            if not self.running[c.key].left:
                self.texts[c.key] = [*prompt.tolist(), 1]
        for key in step.decode:
            slot, text = self.running[key].slot, self.texts[key]
            self.truth[slot, len(text) - 1] = text[-1]
            self.decoded(key, text[-1])
            text.append((text[-1] * 3 + 1) % 5)
        self.done.append(step)
        return step

    def row(self, slot: int) -> npt.NDArray[np.int64]:
        return self.truth[slot, : self.rows[slot].length]


class Chats(RuleBasedStateMachine):
    """Random arrivals, endings and engine failures; few different tokens, so that prompts share prefixes."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Driven()
        self.keys = 0

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT - 4),
        client=st.sampled_from("ab"),
        priority=st.integers(0, 1),
        reuse=st.booleans(),
    )
    def arrive(self, prompt: list[int], client: str, priority: int, reuse: bool) -> None:
        self.keys += 1
        self.scheduler.submit(ticket(self.keys, *prompt, client=client, priority=priority, reuse=reuse))

    @precondition(lambda self: self.scheduler.waiting or self.scheduler.running)
    @rule(data=st.data(), spoiled=st.booleans())
    def leave(self, data: st.DataObject, spoiled: bool) -> None:
        key = data.draw(st.sampled_from([*self.scheduler.waiting, *self.scheduler.running]))
        self.scheduler.remove(key, spoiled=spoiled)

    @rule(budget=st.integers(3, 9))
    def step(self, budget: int) -> None:
        scheduler = self.scheduler
        for key in [key for key, text in scheduler.texts.items() if key in scheduler.running]:
            if len(scheduler.texts[key]) >= CONTEXT:
                scheduler.remove(key)
        before = {key: chat.read for key, chat in scheduler.running.items()}
        waiting = dict(scheduler.waiting)
        step = scheduler.step(budget)
        # whoever waits gets what is free, so a step with chats never does nothing
        assert not (scheduler.waiting and scheduler.free)
        assert not scheduler.running or step.prefill or step.decode
        assert set(step.decode) == {k for k, read in before.items() if read == len(scheduler.running[k].ticket.prompt)}
        if step.prefill is not None:
            assert 1 <= step.prefill.count <= budget
            assert step.prefill.key not in step.decode
            # never a single token of several: an engine rounds it otherwise
            assert step.prefill.count > 1 or len(scheduler.running[step.prefill.key].ticket.prompt) == 1
            # the last token of a prompt is always read: its logits are the first token's
            assert scheduler.running[step.prefill.key].left >= 0
        for key in set(waiting) - set(scheduler.waiting):
            given = waiting[key]
            passed = [scheduler.waiting[k] for k in scheduler.waiting if k < key]
            assert not [t for t in passed if (t.priority, t.client) == (given.priority, given.client)]
            assert not [t for t in scheduler.waiting.values() if t.priority > given.priority]

    @invariant()
    def rows_hold_what_the_scheduler_believes(self) -> None:
        for slot, row in enumerate(self.scheduler.rows):
            assert self.scheduler.row(slot).tolist() == row.tokens.tolist()
        slots = [chat.slot for chat in self.scheduler.running.values()]
        assert len(set(slots)) == len(slots)
        assert sorted([*slots, *self.scheduler.free]) == list(range(SLOTS))

    @invariant()
    def a_chat_owns_exactly_its_own_tokens(self) -> None:
        for key, chat in self.scheduler.running.items():
            row = self.scheduler.row(chat.slot).tolist()
            if chat.left:
                assert row == chat.ticket.prompt[: chat.read].tolist()
            else:
                assert row == self.scheduler.texts[key][:-1]
            assert chat.ticket.reuse or chat.reused == 0


Chats.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRandomChats = Chats.TestCase


def until_read(scheduler: Driven, key: int, budget: int = 4) -> int:
    """Steps until `key` has its first token."""
    for count in range(1, 100):
        scheduler.step(budget)
        if key in scheduler.texts:
            return count
    raise AssertionError("never")


def test_a_long_prompt_is_read_chunk_by_chunk_while_others_get_a_token_each_step() -> None:
    scheduler = Driven()
    scheduler.submit(ticket(1, 9, 8))
    until_read(scheduler, 1)
    scheduler.submit(ticket(2, *range(10, 26)))
    steps = [scheduler.step(4) for _ in range(4)]
    assert [s.decode for s in steps] == [(1,)] * 4
    assert [(s.prefill.start, s.prefill.count) for s in steps if s.prefill] == [(0, 4), (4, 4), (8, 4), (12, 4)]


def test_a_short_question_is_not_held_up_by_a_long_document_and_the_document_gets_every_other_chunk() -> None:
    scheduler = Driven()
    scheduler.submit(ticket(1, *range(10, 30)))
    scheduler.step(4)
    scheduler.submit(ticket(2, 1, 2, 3))
    assert until_read(scheduler, 2) <= 2
    scheduler = Driven(context=64)
    scheduler.submit(ticket(1, *range(10, 30)))
    for key in range(2, 20):
        scheduler.submit(ticket(key, key, 50, 51))
        scheduler.step(4)
        for text in [k for k in scheduler.texts if k in scheduler.running and k != 1]:
            scheduler.remove(text)
    assert 1 in scheduler.texts


def test_a_client_with_many_requests_leaves_room_for_one_with_few() -> None:
    scheduler = Driven()
    for key in range(1, 7):
        scheduler.submit(ticket(key, key, client="greedy"))
    scheduler.submit(ticket(7, 1, client="modest"))
    scheduler.step()
    assert set(scheduler.running) == {1, 2, 7}


def test_a_higher_priority_goes_first_to_a_slot_and_to_the_engine() -> None:
    scheduler = Driven(slots=1)
    scheduler.submit(ticket(1, 1, 2))
    scheduler.submit(ticket(2, 3, 4, priority=5))
    scheduler.step()
    assert set(scheduler.running) == {2}
    scheduler = Driven()
    scheduler.submit(ticket(1, *range(10, 20)))
    scheduler.step(2)
    scheduler.submit(ticket(2, *range(30, 40), priority=1))
    assert [s.prefill.key for s in (scheduler.step(5), scheduler.step(5)) if s.prefill] == [2, 2]


def test_the_next_turn_of_a_chat_reads_only_what_is_new() -> None:
    scheduler = Driven()
    scheduler.submit(ticket(1, *range(10, 18)))
    until_read(scheduler, 1)
    scheduler.step()
    text = scheduler.texts[1][:-1]
    scheduler.remove(1)
    scheduler.submit(ticket(2, 1, 1, 1))  # takes another row
    until_read(scheduler, 2)
    scheduler.submit(ticket(3, *text, 90, 91))
    step = scheduler.step(8)
    assert step.copy is None
    assert step.prefill is not None
    assert (step.prefill.start, step.prefill.count) == (len(text), 2)


def test_a_prompt_that_is_in_the_cache_whole_reads_its_last_two_tokens_again() -> None:
    scheduler = Driven()
    for key in (1, 2):
        scheduler.submit(ticket(key, 5, 6, 7))
        step = scheduler.step()
        scheduler.remove(key)
    assert step.prefill is not None
    assert (step.prefill.start, step.prefill.count) == (1, 2)


def test_chats_that_share_a_prompt_read_it_once_between_them() -> None:
    scheduler = Driven()
    for key in (1, 2, 3):
        scheduler.submit(ticket(key, *range(10, 30)))
    while len(scheduler.texts) < 3:
        scheduler.step(4)
    read = sum(step.prefill.count for step in scheduler.done if step.prefill)
    assert read == 20 + 2 + 2


def test_a_system_prompt_is_copied_and_the_chat_that_had_it_keeps_its_history() -> None:
    scheduler = Driven()
    scheduler.submit(ticket(1, 7, 7, 7, *range(10, 20)))
    until_read(scheduler, 1)
    scheduler.remove(1)
    history = scheduler.rows[0].length
    scheduler.submit(ticket(2, 7, 7, 7, 40, 41))
    step = scheduler.step(8)
    assert step.copy is not None
    assert (step.copy.source, step.copy.count) == (0, 3)
    assert step.prefill is not None
    assert step.prefill.start == 3
    assert scheduler.rows[0].length == history


def test_the_row_that_was_not_used_for_longest_goes_first() -> None:
    scheduler = Driven()
    for key in (1, 2, 3):
        scheduler.submit(ticket(key, key, 50 + key, 60 + key))
        until_read(scheduler, key)
        scheduler.remove(key)
    scheduler.submit(ticket(4, 1, 51, 61, 70))  # uses the oldest row again
    until_read(scheduler, 4)
    scheduler.remove(4)
    scheduler.submit(ticket(5, 9, 9))
    scheduler.step()
    assert [row.tokens[0] for row in scheduler.rows] == [1, 9, 3]


def test_a_row_that_an_engine_failure_spoiled_is_never_reused() -> None:
    scheduler = Driven()
    scheduler.submit(ticket(1, 5, 6, 7, 8))
    scheduler.step(2)
    scheduler.remove(1, spoiled=True)
    scheduler.submit(ticket(2, 5, 6, 7, 8))
    step = scheduler.step(8)
    assert step.prefill is not None
    assert step.prefill.start == 0


def test_nothing_to_do_is_an_empty_step() -> None:
    assert Driven().step() == Step(None, None, ())
