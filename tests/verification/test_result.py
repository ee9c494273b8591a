"""A gate result as JSON, and what a failing build is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import GateError
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import GateResult, Reference, run_gate
from tests.verification.conftest import Build
from tests.verification.damage import scrambled_layer

RECIPE = load_recipe("int4-rtn")


@pytest.fixture
def damaged_graph(tiny: Checkpoint, build: Build) -> Path:
    return build("int4-rtn", "cpu", scrambled_layer(tiny, layer=1))


def test_a_result_survives_json_whatever_its_numbers(tiny: Checkpoint, build: Build, reference: Reference) -> None:
    path = build("int4-rtn", "cpu")
    result = run_gate(reference, path, target("cpu"), RECIPE, tokenizer=ChatTokenizer(tiny.tokenizer))
    assert GateResult.from_json(result.to_json()) == result
    strange = replace(result, measures=replace(result.measures, tensor_error=float("inf")))
    assert GateResult.from_json(strange.to_json()) == strange
    json.loads(strange.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("text", ["", "{}", '{"passed": true, "surprise": 1}'])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(GateError, match=r"cannot be read.*build again"):
        GateResult.from_json(text)


def test_a_degraded_build_that_is_accepted_says_so_and_carries_every_number(
    damaged_graph: Path, reference: Reference
) -> None:
    result = run_gate(reference, damaged_graph, target("cpu"), RECIPE, accept_degraded=True)
    assert not result.passed
    assert any("relative error of weights" in problem for problem in result.problems)
    assert result.measures.positions == sum(map(len, reference.sequences)) - sum(reference.firsts)
    assert sum(count for _, count in result.kl_histogram) == result.measures.positions


def test_a_refused_build_is_told_what_where_and_what_to_try(
    damaged_graph: Path, reference: Reference, tiny: Checkpoint
) -> None:
    with pytest.raises(GateError) as refused:
        run_gate(reference, damaged_graph, target("cpu"), RECIPE, tokenizer=ChatTokenizer(tiny.tokenizer))
    message = str(refused.value)
    for part in ("int4-rtn build for cpu", "allowed is at most", "layers.1.", "Worst chat", "get the checkpoint again"):
        assert part in message
