"""The measures of the token loop on the tiny artifact: each gives its rows; what is no time is checked for truth."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from hermes_deploy.benchmarking import Limit, Row, What, drafts, independence, long_prompt, loop_cost, step_time
from hermes_deploy.benchmarking.doors import InProcess
from hermes_deploy.benchmarking.listening import Arrival, NotMeasured, Timeline, gaps, tokens_per_second
from hermes_deploy.benchmarking.memory import memory_of
from hermes_deploy.benchmarking.report import Collected
from hermes_deploy.benchmarking.run import Opened
from hermes_deploy.runtime.sessions.cache_memory import CacheMemory, RowView


@pytest.fixture
def door(opened: Opened) -> Iterator[InProcess]:
    with closing(opened.in_process()) as loop:
        yield loop


def measures(found: Collected) -> dict[str, float]:
    return {str(row.what): row.median for row in found.report({}).rows}


def timeline(asked: float, *arrivals: tuple[float, int]) -> Timeline:
    count = sum(tokens for _, tokens in arrivals)
    return Timeline(asked, tuple(Arrival(at, tokens) for at, tokens in arrivals), tuple(range(count)), None)


def test_speed_counts_only_the_time_in_which_all_get_tokens() -> None:
    early = timeline(0, (1, 1), (2, 1), (3, 1), (4, 1))
    late = timeline(0, (2, 1), (3, 2), (4, 2), (9, 1))
    # from 2, when the later one began, to 4, when the earlier one ended: 2 and 4 tokens
    assert tokens_per_second([early, late]) == 3
    assert gaps([early, late], 2, 4) == [1, 1, 1, 1, 1]


def test_answers_that_never_ran_together_have_no_speed() -> None:
    with pytest.raises(NotMeasured, match="never all running at once"):
        tokens_per_second([timeline(0, (1, 1), (2, 1)), timeline(0, (3, 1), (4, 1))])


def test_prompts_have_the_wanted_tokens_part_at_once_and_are_the_same_every_time(opened: Opened) -> None:
    one, other = opened.prompts.of(300, 1), opened.prompts.of(300, 2)
    assert len(one.ids) == len(other.ids) == 300
    same = np.flatnonzero(one.ids != other.ids)[0]
    assert same < 25
    assert opened.prompts.of(300, 1).ids.tolist() == one.ids.tolist()
    assert one.ids.tolist() == opened.tokenizer.encode_chat(one.messages)


def test_a_prompt_that_cannot_be_made_says_so(opened: Opened) -> None:
    with pytest.raises(NotMeasured, match="a prompt of 20 tokens cannot be made"):
        opened.prompts.of(20, 1)
    with pytest.raises(NotMeasured, match="a prompt of 900,000 tokens cannot be made"):
        opened.prompts.of(900_000, 1)


def test_a_long_prompt_is_measured_alone_and_beside_running_chats(opened: Opened, door: InProcess) -> None:
    found = Collected()
    long_prompt.CONTEXT, before = 160, long_prompt.CONTEXT
    try:
        long_prompt.measure_alone(door, opened.prompts, 600, found)
        long_prompt.measure_beside(door, opened.prompts, 2, 600, found, quiet_tokens=10)
    finally:
        long_prompt.CONTEXT = before
    names = {row.what.measure for row in found.report({}).rows}
    assert {long_prompt.ALONE, long_prompt.BESIDE, long_prompt.STRETCHED} <= names
    assert door.loop.dead is None


def test_the_loop_without_an_engine_is_timed_for_each_way_of_sampling(opened: Opened) -> None:
    with closing(opened.open_session(1, 512)) as session:
        rows = loop_cost.prepared_logits(session, opened.prompts.of(200, 0).ids)
    assert rows.shape == (128, opened.config.vocab_size)
    found = Collected()
    for name, sampling in (("greedy", loop_cost.GREEDY), ("drawn", loop_cost.DRAWN)):
        loop_cost.measure_cost(rows, 3, sampling, name, found, steps=30, engine_seconds=0.001)
    assert {row.what.where for row in found.report({}).rows} == {"greedy", "drawn"}


def test_prepared_logits_are_those_of_the_last_places_of_the_text(opened: Opened) -> None:
    ids = opened.prompts.of(200, 0).ids
    with closing(opened.open_session(1, 512)) as session:
        rows = loop_cost.prepared_logits(session, ids)
        last = session.prefill(0, ids, 0, 1)[-1]
    np.testing.assert_allclose(rows[-1], last, atol=1e-4)


def test_steps_of_two_sessions_are_compared(opened: Opened) -> None:
    ids, found = opened.prompts.of(160, 0).ids, Collected()
    with closing(opened.open_session(4, 512)) as many, closing(opened.open_session(2, 1024)) as two:
        step_time.compare_slots(many, two, (0, 3), ids, found, rounds=2)
        step_time.compare_lengths(two, many, 1, ids, found, rounds=1)
    ratios = [row for row in found.report({}).rows if row.what.unit == "ratio"]
    assert [(row.what.measure, len(row.values)) for row in ratios] == [
        (step_time.SLOTS_RATIO, 2),
        (step_time.LENGTH_RATIO, 1),
    ]


def test_lone_answers_are_those_of_the_loop_within_rounding(opened: Opened, door: InProcess) -> None:
    prompts = opened.prompts.questions(4)
    with closing(opened.open_session(1, 1024)) as session:
        lone = [independence.lone_answer(session, prompt, 12) for prompt in prompts]
    found = Collected()
    independence.compare(lone, independence.answers_in_company(door, prompts, 12, 3), "company", found)
    independence.compare(lone, independence.answers_behind_prefix(door, prompts, 12, 0.5), "reuse", found)
    told = measures(found)
    assert told["answers that were compared, company"] == 4
    assert told["prompt tokens found in the cache, mean, reuse"] >= min(len(p.ids) for p in prompts) // 2 - 1
    assert all(value < 1e-2 for name, value in told.items() if name.startswith(independence.WIDEST))


def test_an_answer_that_differs_is_told_with_its_place_and_margin() -> None:
    found = Collected()
    lone = [independence.Lone((5, 6, 7), (1.0, 0.25, 3.0)), independence.Lone((1, 2, 3), (9.0, 9.0, 9.0))]
    others = [Timeline(0, (), (5, 9, 7), 4), Timeline(0, (), (1, 2, 3), 0)]
    independence.compare(lone, others, "x", found)
    told = measures(found)
    assert told["answers that differ, x"] == 0.5
    assert told["earliest difference, x"] == 1
    assert told["widest of two best logits there, x"] == 0.25


def test_the_gain_of_drafts_is_told_with_how_many_were_right(opened: Opened, door: InProcess) -> None:
    prompts = opened.prompts.questions(3)
    found = Collected()
    with closing(opened.in_process(speculation=True)) as guessing:
        answers = drafts.measure(guessing, door, "a kind", prompts, 100, found)
        written = sum(len(answer.token_ids) for answer in answers)
        assert guessing.loop.metrics.output_tokens == written
        told = measures(found)
        accepted = guessing.loop.metrics.accepted_tokens
        assert told["share of the answer that was guessed, 1 stream, a kind"] == accepted / written
    assert door.loop.metrics.drafted_tokens == 0
    speeds = [told[f"decode {how} speculation, 1 stream, a kind"] for how in ("with", "without")]
    assert told[f"{drafts.GAIN}, 1 stream, a kind"] == pytest.approx(speeds[0] / speeds[1])


def test_a_lone_answer_ends_where_its_stop_token_is() -> None:
    lone = independence.Lone((5, 6, 7, 6), (1.0, 2.0, 3.0, 4.0))
    assert drafts.ended(lone, frozenset({6})).tokens == (5,)
    assert drafts.ended(lone, frozenset({9})).tokens == lone.tokens


def test_questions_whose_answers_repeat_hold_what_is_to_be_repeated(opened: Opened) -> None:
    asked = drafts.questions(opened.prompts)
    assert [len(prompts) for prompts in asked.values()] == [5, 5, 3, 5, 5, 5]
    repeated = [prompt.messages[0]["content"].split("\n\n", 1)[1] for prompt in asked["repeat a text"]]
    assert all(text in asked["summarize a text"][i].messages[0]["content"] for i, text in enumerate(repeated))
    corrected = asked["correct a text"][0].messages[0]["content"]
    assert " teh " in corrected


def test_memory_counts_cache_pages_that_no_mapping_has_touched() -> None:
    before = memory_of([os.getpid()])
    cache = CacheMemory(1, 4, 1 << 20)
    try:
        # all rows through a view, which is then gone: the pages stay, and are in nobody's PSS
        view = RowView(cache, (3, 1, 0, 2))
        ctypes.memset(view.addresses[0], 1, 4 << 20)
        del view
        after = memory_of([os.getpid()])
        assert after.cache_used - before.cache_used == 4 << 20
        assert after.cache_pss - before.cache_pss < 1 << 20
        assert (after.total - after.pss) - (before.total - before.pss) > 3 << 20
    finally:
        cache.close()


def test_a_limit_is_held_against_the_median() -> None:
    row = Row(What("a", "ratio"), (1.0, 2.0, 9.0), Limit(most=2))
    assert row.reached
    assert not Row(row.what, row.values, Limit(least=2.5)).reached
    assert Row(row.what, row.values).reached is None
    assert row.document()["limit"] == "at most 2"
