"""A chunk takes about as long as a decode step, from what both were seen to take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.pace import LEAST, Pace


def test_a_prompt_that_disturbs_nobody_is_read_in_whole_chunks() -> None:
    assert Pace(256).budget(decoding=0) == 256


def test_before_anything_is_known_little_is_read_beside_others() -> None:
    assert Pace(256).budget(decoding=1) == LEAST


@given(token=st.floats(1e-6, 1e-2), step=st.floats(1e-4, 1.0), stretch=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_chunk_takes_no_longer_than_its_share_of_a_step(token: float, step: float, stretch: float) -> None:
    pace = Pace(256, stretch)
    pace.read(64, 64 * token)
    pace.decoded(step)
    budget = pace.budget(decoding=3)
    assert LEAST <= budget <= 256
    assert budget == LEAST or budget * token <= stretch * step * 1.001
    # and it is not much less than that share either
    assert budget == 256 or (budget + LEAST + 1) * token >= stretch * step


def test_more_prompts_than_running_chats_get_the_larger_share() -> None:
    pace = Pace(1024)
    pace.read(16, 0.016)
    pace.decoded(0.032)
    assert pace.budget(decoding=1, reading=6) == 6 * pace.budget(decoding=1, reading=1)
    assert pace.budget(decoding=6, reading=1) == pace.budget(decoding=1, reading=1)


def test_a_slower_engine_is_noticed() -> None:
    pace = Pace(256)
    pace.read(16, 0.016)
    pace.decoded(0.032)
    before = pace.budget(decoding=1)
    for _ in range(10):
        pace.read(16, 0.064)
    assert pace.budget(decoding=1) < before
