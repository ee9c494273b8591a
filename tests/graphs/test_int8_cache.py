"""Keys and values in 8 bits: the same answers but for a little rounding, and nothing without scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from hermes_deploy.errors import GraphError
from hermes_deploy.graphs import ATTENTION_SCALES, GraphSpec, build_decoder, cache_names, save_model
from hermes_deploy.graphs.steps import MANY
from hermes_deploy.quantization.cache_scales import CacheBounds
from hermes_deploy.quantization.reference import CheckpointWeights, layer_states
from tests.graphs.driver import GraphDriver
from tests.graphs.reference import Reference, make_reference

Scales = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("checkpoint"), sliding_window=24)


@pytest.fixture(scope="module")
def scales(reference: Reference) -> Scales:
    bounds = CacheBounds(reference.config)
    chats = np.random.default_rng(1).integers(0, 320, size=(8, 60)).tolist()
    for _ in layer_states(reference.config, CheckpointWeights(reference.tensors), chats, keep=bounds.keep):
        pass
    return bounds.scales({})


def drivers(reference: Reference, scales: Scales, folder: Path, slots: int) -> tuple[GraphDriver, GraphDriver]:
    """The graph with its cache as it is, and in 8 bits."""
    made = []
    for kv in (None, "int8"):
        spec = GraphSpec(reference.config, "ort", "fp32", 64, kv=kv)  # type: ignore[arg-type]
        path = folder / f"{kv}.onnx"
        save_model(build_decoder(spec, reference.tensors, scales if kv else None), path)
        made.append(GraphDriver(path, spec, slots))
    return made[0], made[1]


def kl(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean over positions, nats."""
    ours, theirs = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (one, other))
    return float((np.exp(ours) * (ours - theirs)).sum(axis=-1).mean())


def test_prefill_in_chunks_and_ragged_decode_answer_like_the_graph_with_a_cache_as_it_is(
    reference: Reference, scales: Scales, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(2).integers(0, 320, size=(2, 50))
    found: list[list[npt.NDArray[np.float32]]] = [[], []]
    for answers, driver in zip(found, drivers(reference, scales, tmp_path, slots=2), strict=True):
        for row, length in ((0, 30), (1, 17)):
            for start in range(0, length, 11):
                piece = tokens[row : row + 1, start : min(start + 11, length)]
                answers.append(driver.step(slice(row, row + 1), piece, [start])[0])
        for step in range(15):
            at = [30 + step, 17 + step]
            answers.append(driver.step(slice(0, 2), tokens[[0, 1], at][:, None], at)[:, 0])
    plain, coded = (np.concatenate(each) for each in found)
    assert 0 < kl(plain, coded) < 2e-3


def test_both_ways_of_the_graph_write_the_same_codes_and_give_the_same_answers(
    reference: Reference, scales: Scales, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(4).integers(0, 320, size=(1, 20 + MANY))
    _, driver = drivers(reference, scales, tmp_path, slots=1)
    row = slice(0, 1)
    driver.step(row, tokens[:, :20], [0])
    before = {name: cache.copy() for name, cache in driver.caches.items()}
    few = np.concatenate([driver.step(row, tokens[:, at : at + 4], [at])[0] for at in range(20, 20 + MANY, 4)])
    # of the first layer: later ones see last bits
    read = slice(0, 20 + MANY)
    codes = {name: driver.caches[name][:, :, read].copy() for name in ("past_key_0", "past_value_0")}
    for name, cache in before.items():
        driver.caches[name][:] = cache
    many = driver.step(row, tokens[:, 20:], [20])[0]
    np.testing.assert_allclose(many, few, atol=0.02)
    for name, written in codes.items():
        np.testing.assert_array_equal(driver.caches[name][:, :, read], written)


def test_answers_do_not_depend_on_how_the_prompt_was_cut(reference: Reference, scales: Scales, tmp_path: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, 320, size=(1, 40))
    _, driver = drivers(reference, scales, tmp_path, slots=1)
    whole = driver.step(slice(0, 1), tokens, [0])[0]
    codes = driver.caches["past_key_1"][0, :, :40].copy()
    single = [driver.step(slice(0, 1), tokens[:, at : at + 1], [at])[0, 0] for at in range(40)]
    # the last bit of a key may decide about its code
    np.testing.assert_allclose(np.stack(single), whole, atol=0.05)
    assert (driver.caches["past_key_1"][0, :, :40] != codes).mean() < 1e-3


def test_the_graph_says_what_its_cache_is_and_holds_its_scales(reference: Reference, scales: Scales) -> None:
    spec = GraphSpec(reference.config, "ort", "fp32", 64, kv="int8")
    model = build_decoder(spec, reference.tensors, scales)
    assert model.metadata_props["kv"] == "int8"
    assert (
        build_decoder(GraphSpec(reference.config, "ort", "fp16", 64), reference.tensors).metadata_props["kv"] == "fp16"
    )
    caches = {name for pair in cache_names(reference.config.layers) for name in pair}
    ends = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.name in caches]
    assert len(ends) == len(caches)
    for value in ends:
        assert value.dtype == ir.DataType.INT8
        assert list(value.shape or ()) == [*ends[0].shape]  # type: ignore[misc]
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if "k_quant_type" in node.attributes]
    assert len(nodes) == reference.config.layers
    for layer, node in enumerate(nodes):
        for kind, place in ATTENTION_SCALES.items():
            stored = node.inputs[place].const_value.numpy()  # type: ignore[union-attr]
            np.testing.assert_array_equal(stored[0, :, 0], scales[f"layers.{layer}.{kind}"])


@pytest.mark.parametrize("damage", ["none at all", "one is missing", "of one number", "of another dtype"])
def test_without_a_scale_for_each_channel_nothing_is_built(reference: Reference, scales: Scales, damage: str) -> None:
    given: dict[str, Any] = {} if damage == "none at all" else dict(scales)
    if damage == "one is missing":
        del given["layers.1.value"]
    elif damage == "of one number":
        given["layers.1.value"] = np.ones((1,), np.float32)
    elif damage == "of another dtype":
        given["layers.1.value"] = scales["layers.1.value"].astype(np.float64)
    with pytest.raises(
        GraphError, match=r"the int8 cache layers\.\d\.\w+ needs float32 scales \[2, 16\]; found .*prepare"
    ):
        build_decoder(GraphSpec(reference.config, "ort", "fp32", 64, kv="int8"), reference.tensors, given)


def test_a_cache_that_no_engine_of_the_dialect_takes_is_refused(reference: Reference) -> None:
    for dialect, activation in (("portable", "fp16"), ("portable", "fp32"), ("ort", "fp16")):
        with pytest.raises(GraphError, match=rf"kv is 'int8' in a graph of dialect {dialect} in .*--target cpu"):
            GraphSpec(reference.config, dialect, activation, 64, kv="int8")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="kv is 'fp16'; this version builds: None, fp32, int8"):
        GraphSpec(reference.config, "ort", "fp32", 64, kv="fp16")
