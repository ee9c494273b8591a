"""Each stage against the one before: a failure names the stage that it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import GateError
from hermes_deploy.quantization.reference import layer_states
from hermes_deploy.recipes import GateThresholds, load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import Reference, over_threshold, run_gate
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.result import KERNELS, WEIGHTS
from hermes_deploy.verification.saved_weights import SavedWeights
from hermes_deploy.verification.stages import _Apart, chain
from tests.verification.conftest import Build
from tests.verification.damage import scrambled_layer


def steps(reference: Reference, path: Path) -> dict[str, float]:
    return {step.stage: step.kl for step in chain(reference, path, Candidate(path, 64), positions=64).steps}


@pytest.mark.parametrize(
    ("recipe", "where", "share"),
    [("int4-rtn", "cpu", 0.1), ("int4-rtn", "sm80", 0.01), ("fp8", "sm89", 0.8), ("int8-sq", "sm80", 0.8)],
)
def test_quantization_shows_in_the_weights_and_kernels_add_less(
    recipe: str, where: str, share: float, build: Build, reference: Reference
) -> None:
    # with coded activations a last bit of fp16 can be another code: that the kernels' share is not tiny is right
    found = steps(reference, build(recipe, where))
    assert 0 < found[KERNELS] < share * found[WEIGHTS]


@pytest.mark.parametrize(("recipe", "where"), [("fp32", "cpu"), ("fp16", "sm80")])
def test_without_quantization_both_steps_are_small(recipe: str, where: str, build: Build, reference: Reference) -> None:
    found = steps(reference, build(recipe, where))
    assert max(found.values()) < 1e-4


def test_a_graph_that_computes_something_else_is_named_as_such(build: Build, reference: Reference) -> None:
    path = build("fp16", "sm80")
    model = ir.load(path)
    next(node for node in model.graph if node.op_type == "Attention").attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    ir.save(model, path)
    with pytest.raises(GateError, match=r"The difference comes from graph and kernels \(.*weights .*e-.*\)"):
        run_gate(reference, path, target("sm80"), load_recipe("fp16"))


def test_damaged_weights_are_named_as_such_and_show_from_their_layer_on(
    tiny: Checkpoint, build: Build, reference: Reference
) -> None:
    path = build("fp16", "sm80", scrambled_layer(tiny, layer=1))
    found = chain(reference, path, Candidate(path, 64), positions=64)
    embedding, first, second, _ = found.by_layer
    assert embedding < 1e-3 and first < 1e-2 < 0.1 < second
    with pytest.raises(GateError, match="The difference comes from weights"):
        run_gate(reference, path, target("sm80"), load_recipe("fp16"))


@pytest.mark.parametrize(
    ("recipe", "where", "close"), [("int4-rtn", "sm80", 0.002), ("fp8", "sm89", 0.06), ("int8-sq", "sm80", 0.04)]
)
def test_the_decoder_with_saved_weights_is_the_graph_itself_but_for_the_rounding_of_fp16(
    recipe: str, where: str, close: float, tiny: Checkpoint, build: Build
) -> None:
    ids = [list(range(40)), list(range(90, 110))]
    path = build(recipe, where)
    saved = SavedWeights(path)
    *_, state = layer_states(tiny.config, saved, ids)
    wanted = saved.linear("head")(state)
    ran = np.concatenate([logits for _, _, logits in Candidate(path, 64).answers(ids)])
    assert np.linalg.norm(ran - wanted) < close * np.linalg.norm(wanted)


@pytest.mark.parametrize("where", ["cpu", "sm80"])
def test_a_wrong_graph_does_not_hide_in_what_4_bits_may_cost(where: str, build: Build, reference: Reference) -> None:
    path = build("int4-rtn", where)
    good = run_gate(reference, path, target(where), load_recipe("int4-rtn"))
    model = ir.load(path)
    for name in ("rope.cos", "rope.sin"):  # every position is the first one
        value = model.graph.initializers[name]
        assert value.const_value is not None
        table = np.repeat(value.const_value.numpy()[:1], value.const_value.shape[0], axis=0)
        value.const_value = ir.tensor(table, name=name)
    ir.save(model, path)
    found = run_gate(reference, path, target(where), load_recipe("int4-rtn"), accept_degraded=True)
    assert good.chain is not None and found.chain is not None
    (_, before), (_, after) = good.chain.steps, found.chain.steps
    assert after.kl > 3 * before.kl
    allowed = GateThresholds(**{**found.thresholds, "max_kernels_kl": (before.kl + after.kl) / 2})
    assert over_threshold(good.measures, allowed, stages=good.chain) == []
    (problem,) = over_threshold(found.measures, allowed, stages=found.chain)
    assert KERNELS in problem and "allowed" in problem


def test_the_int4_recipes_ask_what_graph_and_kernels_add() -> None:
    for name in ("int4-rtn", "int4-awq"):
        recipe = load_recipe(name)
        assert recipe.gate.max_kernels_kl and recipe.small_model_gate and recipe.small_model_gate.max_kernels_kl


def test_a_stage_that_gives_no_number_is_the_worst_and_not_the_best() -> None:
    apart = _Apart()
    apart.add(np.eye(2, 4, dtype=np.float32), np.full((2, 4), np.nan, np.float32))
    step = apart.step(WEIGHTS)
    assert step.kl == step.logits == float("inf")
