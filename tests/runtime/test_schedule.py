"""The next step: oldest first, one chunk of one prompt, one token for everyone who is ready."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.schedule import Chunk, Running, Step, plan_step


def test_the_longest_waiting_get_the_free_slots_and_the_first_of_them_is_read_in() -> None:
    running = [Running(key=1, slot=1, prompt=4, prefilled=4)]
    step = plan_step([(5, 20), (6, 3), (7, 2)], running, slots=3, prefill_chunk=8)
    assert step == Step(admit=((5, 0), (6, 2)), prefill=Chunk(key=5, slot=0, start=0, count=8), decode=(1,))


def test_a_long_prompt_is_read_in_chunk_by_chunk_while_others_decode() -> None:
    ready = Running(key=1, slot=0, prompt=4, prefilled=4)
    step = plan_step([], [ready, Running(key=2, slot=1, prompt=20, prefilled=16)], slots=2, prefill_chunk=8)
    assert step == Step(admit=(), prefill=Chunk(key=2, slot=1, start=16, count=4), decode=(1,))


def test_nothing_to_do_is_an_empty_step() -> None:
    assert plan_step([], [], slots=2, prefill_chunk=8) == Step((), None, ())


@given(
    prompts=st.lists(st.integers(1, 40), max_size=8),
    done=st.lists(st.integers(0, 40), max_size=8),
    slots=st.integers(1, 6),
    chunk=st.integers(1, 16),
)
def test_no_slot_is_given_twice_and_no_chat_does_two_things(
    prompts: list[int], done: list[int], slots: int, chunk: int
) -> None:
    waiting = list(enumerate(prompts, start=100))
    running = [Running(i, i, 40, n) for i, n in enumerate(done[:slots])]
    step = plan_step(waiting, running, slots, chunk)
    taken = [chat.slot for chat in running] + [slot for _, slot in step.admit]
    assert len(set(taken)) == len(taken) == min(slots, len(running) + len(waiting))
    assert step.prefill is None or step.prefill.key not in step.decode
    assert {chat.key for chat in running if chat.prefilled == 40} == set(step.decode)
    # whoever holds a slot gets on: an empty step would be a silent hang
    assert not taken or step.prefill or step.decode
