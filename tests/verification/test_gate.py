"""Good builds pass, damaged ones are refused, at the thresholds that ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import GateError
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import prepare, quantize
from hermes_deploy.recipes import GateThresholds, load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import (
    Measures,
    Reference,
    over_threshold,
    reference_of,
    run_gate,
    tensor_error,
    tensors_sha256,
)
from hermes_deploy.verification.reference import first_compared
from tests.verification.conftest import Build
from tests.verification.damage import damaged, scrambled_head, scrambled_layer

EVERY_BUILD = [
    ("fp32", "cpu"),
    ("int4-rtn", "cpu"),
    ("fp16", "cuda"),
    ("int4-rtn", "cuda"),
    ("fp16", "sm80"),
    ("int4-rtn", "sm80"),
    ("fp8", "sm89"),
]


@pytest.mark.parametrize(("recipe", "where"), EVERY_BUILD)
def test_a_good_build_passes(recipe: str, where: str, build: Build, reference: Reference) -> None:
    path = build(recipe, where)
    result = run_gate(reference, path, target(where), load_recipe(recipe))
    assert result.passed
    assert result.recipe == recipe
    assert result.tensors_sha256 == tensors_sha256(path)
    assert result.measures.positions == sum(map(len, reference.sequences)) - sum(reference.firsts)
    assert result.thresholds == load_recipe(recipe).thresholds(0).model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("recipe", "where"), [("fp32", "cpu"), ("int4-rtn", "cpu"), ("fp16", "sm80"), ("int4-rtn", "sm80")]
)
@pytest.mark.parametrize("matrix", ["q", "k", "v", "o"])
def test_one_scrambled_attention_head_is_refused(
    recipe: str, where: str, matrix: str, tiny: Checkpoint, build: Build, reference: Reference
) -> None:
    path = build(recipe, where, scrambled_head(tiny, layer=1, head=1, matrix=matrix))
    part = "o" if matrix == "o" else "qkv"
    with pytest.raises(GateError, match=rf"relative error of weights \(worst: layers\.1\.{part}, .*group 1\)"):
        run_gate(reference, path, target(where), load_recipe(recipe))


@pytest.mark.parametrize(("recipe", "where"), EVERY_BUILD)
def test_one_scrambled_layer_is_refused(
    recipe: str, where: str, tiny: Checkpoint, build: Build, reference: Reference
) -> None:
    path = build(recipe, where, scrambled_layer(tiny, layer=0))
    with pytest.raises(GateError, match=f"{recipe} build for {where}.*Nothing is published"):
        run_gate(reference, path, target(where), load_recipe(recipe))


def test_weights_are_held_against_what_they_were_made_from_and_answers_against_the_checkpoint(
    tiny: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    recipe, goal = load_recipe("int8-sq"), target("sm80")
    texts = [list(ids[:64]) for ids in reference.sequences[:4]]
    preparation = prepare(tiny.config, tiny.tensors, texts, recipe, goal)
    folded = preparation.tensors(tiny.config, tiny.tensors)
    model = build_decoder(GraphSpec(tiny.config, goal.dialect, goal.activation, 192), folded)
    quantize(model, recipe, goal, preparation)
    path = tmp_path / "model.onnx"
    save_model(model, path)
    result = run_gate(reference, path, goal, recipe, tensors=folded)
    assert result.passed
    assert result.chain is not None and max(result.chain.by_layer) < 0.1
    with pytest.raises(GateError, match="relative error of weights"):
        run_gate(reference, path, goal, recipe)


def test_a_damaged_norm_and_a_damaged_embedding_row_are_found(tiny: Checkpoint, build: Build) -> None:
    for name, where in (
        ("model.layers.1.post_attention_layernorm.weight", r"layers\.1\.mlp_norm"),
        ("model.embed_tokens.weight", "embedding"),
    ):

        def spoil(a: np.ndarray) -> np.ndarray:
            a[-1] = 3.0 if a.ndim == 1 else a[-2]
            return a

        found = tensor_error(build("int4-rtn", "cpu", damaged(tiny, (name,), spoil)), tiny.config, tiny.tensors)
        assert found.worst > load_recipe("int4-rtn").thresholds(0).max_tensor_error
        assert where.replace("\\", "") in found.where


def test_answers_that_are_not_numbers_are_refused(tiny: Checkpoint, build: Build, reference: Reference) -> None:
    def huge(a: np.ndarray) -> np.ndarray:
        a[:] = 60000.0
        return a

    path = build("fp16", "sm80", damaged(tiny, ("model.norm.weight",), huge))
    with pytest.raises(GateError, match="NaN or infinity"):
        run_gate(reference, path, target("sm80"), load_recipe("fp16"))


def test_a_checkpoint_whose_own_answers_are_not_numbers_is_refused(tiny: Checkpoint) -> None:
    broken = damaged(tiny, ("model.norm.weight",), lambda a: a * np.float32("nan"))
    with pytest.raises(GateError, match="unquantized checkpoint itself"):
        reference_of(tiny.config, broken, [[1, 2, 3]], "broken")


def test_texts_longer_than_the_graph_holds_are_cut(build: Build, reference: Reference) -> None:
    for recipe, where in (("fp32", "cpu"), ("fp16", "sm80")):
        result = run_gate(reference, build(recipe, where, max_context=20), target(where), load_recipe(recipe))
        assert result.measures.positions == 20 * len(reference.sequences) - sum(reference.firsts)


def test_words_that_open_every_chat_count_once(tiny: Checkpoint, build: Build) -> None:
    opening = list(range(30))
    texts = [[*opening, 100, 101], [*opening, 102], [*opening, 100, 101, 103], [104], opening]
    assert first_compared(texts) == (0, 30, 32, 0, 30)
    repeated = reference_of(tiny.config, tiny.tensors, texts, "repeated")
    result = run_gate(repeated, build("int4-rtn", "cpu"), target("cpu"), load_recipe("int4-rtn"))
    assert result.measures.positions == 32 + 1 + 1 + 1
    assert result.chats == 4


def test_texts_longer_than_one_run_continue_from_the_cache(tiny: Checkpoint, build: Build) -> None:
    ids = np.random.default_rng(0).integers(0, 256, size=(3, 600))
    long = reference_of(
        tiny.config, tiny.tensors, [ids[0].tolist(), ids[1, :5].tolist(), ids[2, :300].tolist()], "long"
    )
    for recipe, where in (("fp32", "cpu"), ("fp16", "sm80")):
        result = run_gate(long, build(recipe, where, max_context=640), target(where), load_recipe(recipe))
        assert result.measures.positions == 905


def test_a_graph_of_another_model_is_refused(tiny: Checkpoint, build: Build, reference: Reference) -> None:
    other = replace(reference, config=replace(tiny.config, layers=3))
    with pytest.raises(GateError, match=r"no linear is tagged layers\.2\.qkv"):
        run_gate(other, build("fp32", "cpu"), target("cpu"), load_recipe("fp32"))


def test_a_file_that_onnx_runtime_cannot_run_is_refused(tiny: Checkpoint, tmp_path: Path, reference: Reference) -> None:
    path = tmp_path / "strange.onnx"
    model = build_decoder(GraphSpec(tiny.config, "ort", "fp32", 192), tiny.tensors)
    next(node for node in model.graph if node.op_type == "GroupQueryAttention").op_type = "NoSuchAttention"
    save_model(model, path)
    with pytest.raises(GateError, match="ONNX Runtime cannot load"):
        run_gate(reference, path, target("cpu"), load_recipe("fp32"))


def test_every_measure_over_its_threshold_is_named_and_nan_never_passes() -> None:
    allowed = GateThresholds(
        max_kl=0.1, min_top1=0.9, min_top1_confident=0.95, max_perplexity_ratio=1.1, max_tensor_error=0.1
    )
    good = Measures(
        kl=0.1,
        top1=0.9,
        top1_confident=0.95,
        perplexity_ratio=1.1,
        tensor_error=0.1,
        positions=1000,
        confident_positions=700,
        reference_perplexity=20.0,
    )
    assert over_threshold(good, allowed) == []
    for name, word in (
        ("kl", "KL"),
        ("top1", "first choices"),
        ("top1_confident", "where the reference is sure"),
        ("perplexity_ratio", "perplexity"),
        ("tensor_error", "weights"),
    ):
        for bad in (0.5 if name.startswith("top1") else 2.0, float("nan")):
            (problem,) = over_threshold(replace(good, **{name: bad}), allowed)
            assert word in problem and "allowed" in problem
