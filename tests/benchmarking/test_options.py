"""What is refused before anything runs, and what is left out with its reason."""

from __future__ import annotations

import pytest

from hermes_deploy.benchmarking import Options, Sizes
from hermes_deploy.benchmarking.options import make_plan
from hermes_deploy.errors import UsageError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"streams": ()}, "--streams is empty; it takes numbers from 1"),
        ({"streams": (0,)}, "--streams is 0"),
        ({"streams": (1, 1)}, "--streams is 1,1, which names a number twice"),
        ({"rounds": 0}, "--rounds is 0; allowed is 1"),
        ({"doors": ("window",)}, "--doors is window; it takes each at most once: in-process, chat, ensemble"),
        ({"doors": ()}, "--doors is empty"),
        ({"doors": ("chat", "chat")}, "--doors is chat,chat"),
    ],
)
def test_options_that_no_artifact_could_do_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Options(**values)  # type: ignore[arg-type]


def test_all_that_an_artifact_allows_is_planned_and_the_rest_named() -> None:
    plan = make_plan(Options(), max_slots=8, max_context=1164, turn_tokens=160)
    assert [(one.context, one.streams) for one in plan.decode] == [(128, 1), (128, 4), (128, 8), (1024, 1), (1024, 4)]
    assert plan.prefill
    assert not plan.turns
    assert "--max-slots 16" in plan.left_out["16 streams"]
    assert "--max-context 1168" in plan.left_out["decode, 1,024 tokens, 8 streams"]
    assert "1,164" in plan.left_out["second turn, 1,000 tokens"]


def test_nothing_left_to_measure_is_an_error_that_says_why() -> None:
    with pytest.raises(UsageError, match=r"nothing of --streams 16 can be measured(.|\n)*has 8 slots"):
        make_plan(Options(streams=(16,)), max_slots=8, max_context=2048, turn_tokens=20)


def test_quick_says_what_it_leaves_out() -> None:
    plan = make_plan(Options(quick=True), max_slots=16, max_context=8192, turn_tokens=20)
    assert plan.left_out == {"decode, 1,024 tokens": "--quick", "PSS with all slots full": "--quick"}


def test_the_whole_measurement_leaves_nothing_out_where_there_is_room() -> None:
    plan = make_plan(Options(), max_slots=16, max_context=2048, turn_tokens=20)
    assert plan.left_out == {}
    assert plan.full
    assert len(plan.decode) == 4 * len(Sizes().contexts)


def test_slots_that_take_too_long_to_fill_are_left_out() -> None:
    plan = make_plan(Options(), max_slots=16, max_context=8192, turn_tokens=20)
    assert not plan.full
    assert "16 slots x 8,192 tokens" in plan.left_out["PSS with all slots full"]
