"""A quantized model on the operators of `kernels`: close to ONNX Runtime's, and the same bits however it is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from hermes_deploy import kernels
from hermes_deploy.graphs import GraphSpec, build_decoder, save_fused, save_model
from hermes_deploy.quantization import quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.sessions.ort_cpu import OrtCpuSession
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.targets import TARGETS
from tests.graphs.reference import make_reference
from tests.runtime.test_token_loop import collect

CONTEXT = 700
Open = Callable[..., OrtCpuSession]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Linears in 4 bits, the head in 8, and a cache of floats or of codes."""
    folder = tmp_path_factory.mktemp("int4")
    reference = make_reference(
        folder / "checkpoint",
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    config, kv = reference.config, request.param
    spec = GraphSpec(config, "ort", "fp32", CONTEXT, kv=kv)
    scale = np.full((config.kv_heads, config.head_dim), 0.03, np.float32)
    scales = {f"layers.{i}.{kind}": scale for i in range(config.layers) for kind in ("key", "value")}
    graph = build_decoder(spec, reference.tensors, scales if kv == "int8" else None)
    recipe = load_recipe("int4-rtn")
    quantize(
        graph, recipe.model_copy(update={"head": "int8", "kv": "int8" if kv == "int8" else recipe.kv}), TARGETS["cpu"]
    )
    save_model(graph, folder / "model.onnx")
    assert save_fused(folder / "model.onnx", folder / kernels.FUSED)
    return folder / "model.onnx"


@pytest.fixture
def opened(model: Path) -> Open:
    if reason := kernels.trouble():
        pytest.skip(reason)
    return lambda threads=2, **options: OrtCpuSession(model, slots=4, threads=threads, **options)


def text(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 320, count)


def read(session: OrtCpuSession, slot: int, tokens: npt.NDArray[np.int64], chunk: int = 256) -> npt.NDArray[np.float32]:
    for start in range(0, len(tokens), chunk):
        logits = session.prefill(slot, tokens[start : start + chunk], start)
    return logits[0]


def test_they_say_what_onnx_runtime_says(opened: Open) -> None:
    ours, theirs = opened(), opened(own_kernels=False)
    assert (ours.without_kernels, theirs.without_kernels) == ("", "they are switched off")
    for count in (3, 300, 640):
        found, wanted = read(ours, 0, text(count)), read(theirs, 0, text(count))
        assert np.abs(found - wanted).max() < 0.1 * wanted.std()


def test_a_prompt_has_the_same_bits_however_it_is_cut_and_whoever_runs_beside_it(opened: Open) -> None:
    session, tokens = opened(), text(600)
    whole = read(session, 0, tokens)
    for slot, chunk in ((1, 100), (2, 1), (3, 37)):
        assert read(session, slot, tokens, chunk).tobytes() == whole.tobytes()
    assert read(opened(threads=1), 0, tokens).tobytes() == whole.tobytes()
    next_ones, at = np.full(4, 7, np.int64), np.full(4, 600, np.int64)
    together = session.decode([0, 1, 2, 3], next_ones, at)
    alone = session.decode([2], next_ones[:1], at[:1])
    assert all(row.tobytes() == alone[0].tobytes() for row in together)


def test_a_draft_that_is_checked_has_the_bits_of_one_token_after_the_other_and_leaves_no_trace(opened: Open) -> None:
    session, tokens = opened(), text(640)
    assert session.draft_tokens == session.prefill_chunk - 1
    without = opened(own_kernels=False)
    assert without.draft_tokens == 0
    without.close()
    for slot in (0, 1):
        read(session, slot, tokens[:500])
    singly = [session.decode([0], tokens[at : at + 1], np.array([at]))[0].tobytes() for at in range(500, 640)]
    at, rng = 500, np.random.default_rng(1)
    while at < 620:
        right, wrong = int(rng.integers(1, 9)), int(rng.integers(0, 8))
        checked = np.concatenate([tokens[at : at + right], rng.integers(0, 320, wrong)])
        found = session.prefill(1, checked, at, len(checked))
        assert [row.tobytes() for row in found[:right]] == singly[at - 500 : at - 500 + right]
        at += right
    session.close()


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=3)], ids=["greedy", "drawn"]
)
def test_answers_with_drafts_are_those_without(opened: Open, sampling: Sampling) -> None:
    prompts = [np.tile(text(12, seed), 8) for seed in range(6)]
    found = []
    for speculation in (True, False):
        loop = TokenLoop(opened(), speculation=speculation)
        found.append([collect(loop.submit(Generation(prompt, 100, sampling)))[0] for prompt in prompts])
        assert (loop.metrics.drafted_tokens > 0) == speculation
        loop.close()
    assert found[0] == found[1]


def test_the_fused_graph_is_a_third_smaller_and_reads_the_same_weights(model: Path) -> None:
    whole, fused = ir.load(model), ir.load(model.with_name(kernels.FUSED))
    assert len(list(fused.graph)) < 0.7 * len(list(whole.graph))
    assert {node.domain for node in fused.graph if "Linear" in node.op_type or "Attention" in node.op_type} == {
        kernels.DOMAIN
    }
    assert sorted(path.name for path in model.parent.glob("*.data")) == ["model.onnx.data"]


def test_an_artifact_without_that_graph_is_run_by_onnx_runtime_and_says_so(model: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).symlink_to(model.with_name(name))
    session = OrtCpuSession(tmp_path / "model.onnx", slots=1, threads=1)
    assert session.without_kernels in ("the artifact has no graph for them", kernels.trouble())
    assert np.isfinite(read(session, 0, text(5))).all()


def test_where_they_were_not_compiled_it_is_said_and_what_to_do(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    kernels.trouble.cache_clear()
    try:
        session = OrtCpuSession(model, slots=1, threads=1)
        assert "g++" in session.without_kernels
        assert np.isfinite(read(session, 0, text(5))).all()
    finally:
        kernels.trouble.cache_clear()


def test_a_graph_that_is_only_partly_ours_says_so_and_nothing_is_drafted(tmp_path: Path) -> None:
    if reason := kernels.trouble():
        pytest.skip(reason)
    reference = make_reference(tmp_path / "checkpoint")
    graph = build_decoder(GraphSpec(reference.config, "ort", "fp32", 64), reference.tensors)
    quantize(graph, load_recipe("int4-rtn"), TARGETS["cpu"])
    linear = next(node for node in graph.graph if node.name == "layers.0.down")
    del linear.metadata_props["linear"]  # what is not known as a linear is left alone
    save_model(graph, tmp_path / "model.onnx")
    assert save_fused(tmp_path / "model.onnx", tmp_path / kernels.FUSED)
    with closing(OrtCpuSession(tmp_path / "model.onnx", slots=1)) as session:
        assert (session.without_kernels, session.draft_tokens) == ("", 0)
        assert np.isfinite(read(session, 0, text(5))).all()


@pytest.mark.parametrize("window", [1, 40, 300])
def test_a_sliding_window_is_as_long_as_onnx_runtimes(tmp_path: Path, window: int) -> None:
    if reason := kernels.trouble():
        pytest.skip(reason)
    reference = make_reference(tmp_path / "checkpoint", sliding_window=window)
    save_model(
        build_decoder(GraphSpec(reference.config, "ort", "fp32", CONTEXT), reference.tensors), tmp_path / "model.onnx"
    )
    assert save_fused(tmp_path / "model.onnx", tmp_path / kernels.FUSED)
    with (
        closing(OrtCpuSession(tmp_path / "model.onnx", slots=1)) as ours,
        closing(OrtCpuSession(tmp_path / "model.onnx", slots=1, own_kernels=False)) as theirs,
    ):
        assert (ours.without_kernels, theirs.without_kernels) == ("", "they are switched off")
        for chunk in (256, 37):
            np.testing.assert_allclose(read(ours, 0, text(500), chunk), read(theirs, 0, text(500), chunk), atol=2e-4)
        one, at = np.array([7], np.int64), np.array([500], np.int64)
        np.testing.assert_allclose(ours.decode([0], one, at), theirs.decode([0], one, at), atol=2e-4)


def test_heads_that_are_too_wide_stay_with_onnx_runtime(tmp_path: Path) -> None:
    reference = make_reference(
        tmp_path / "checkpoint", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=272
    )
    save_model(
        build_decoder(GraphSpec(reference.config, "ort", "fp32", 64), reference.tensors), tmp_path / "model.onnx"
    )
    assert not save_fused(tmp_path / "model.onnx", tmp_path / kernels.FUSED)
