"""What the next rooms rely on: names, tags, metadata, a valid file, equal bytes, clear refusals."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import GraphError
from hermes_deploy.graphs import ATTRIBUTE_LINEAR, GraphSpec, build_decoder, linear_names, save_model
from tests.graphs.reference import Reference, make_reference

DIALECTS = pytest.mark.parametrize("dialect", ["portable", "ort"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("checkpoint"), sliding_window=9)


def build(reference: Reference, dialect: Any = "portable", activation: Any = "fp32") -> ir.Model:
    return build_decoder(GraphSpec(reference.config, dialect, activation, 64), reference.tensors)


@DIALECTS
def test_every_linear_is_one_matmul_that_carries_its_name(reference: Reference, dialect: Any) -> None:
    nodes = [node for node in build(reference, dialect).graph if node.op_type == "MatMul"]
    assert [node.metadata_props[ATTRIBUTE_LINEAR] for node in nodes] == linear_names(2)
    assert [node.inputs[1].name for node in nodes] == [f"{name}.weight" for name in linear_names(2)]


@DIALECTS
def test_the_tags_and_facts_survive_saving(reference: Reference, dialect: Any, tmp_path: Path) -> None:
    save_model(build(reference, dialect), tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    tags = [node.metadata_props.get(ATTRIBUTE_LINEAR) for node in model.graph if node.op_type == "MatMul"]
    assert tags == linear_names(2)
    facts = {"dialect": dialect, "activation": "fp32", "max_context": "64", "sliding_window": "9", "layers": "2"}
    assert facts.items() <= model.metadata_props.items()


def test_fused_weights_hold_their_sources_side_by_side(reference: Reference) -> None:
    weights = build(reference).graph.initializers
    parts = [reference.tensors[f"model.layers.1.self_attn.{part}_proj.weight"].float32().T for part in ("q", "k", "v")]
    np.testing.assert_array_equal(weights["layers.1.qkv.weight"].const_value.numpy(), np.concatenate(parts, axis=1))


@pytest.mark.parametrize("activation", ["fp32", "fp16"])
def test_the_portable_graph_is_clean_to_the_full_checker(reference: Reference, activation: Any, tmp_path: Path) -> None:
    save_model(build(reference, activation=activation), tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert {opset.domain: opset.version for opset in onnx.load(tmp_path / "model.onnx").opset_import} == {"": 24}


def test_the_portable_graph_is_taken_by_the_tensorrt_parser(reference: Reference, tmp_path: Path) -> None:
    import tensorrt_rtx as trt

    save_model(build(reference, activation="fp16"), tmp_path / "model.onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "model.onnx")), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]


@DIALECTS
def test_two_builds_give_identical_bytes(reference: Reference, dialect: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_model(build(reference, dialect), tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_weights_lie_on_pages_of_their_own(reference: Reference, tmp_path: Path) -> None:
    save_model(build(reference), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    offsets = [
        int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
        for tensor in proto.graph.initializer
        if tensor.external_data
    ]
    assert len(offsets) > 10
    assert all(offset % 4096 == 0 for offset in offsets)


def test_saving_reports_each_weight_as_it_goes(reference: Reference, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    save_model(build(reference), tmp_path / "model.onnx", lambda *report: seen.append(report))
    assert {f"{name}.weight" for name in linear_names(2)} <= {name for name, _, _ in seen}
    assert [done for _, done, _ in seen] == list(range(seen[0][2]))


def test_a_missing_tensor_is_named(reference: Reference) -> None:
    tensors = {k: v for k, v in reference.tensors.items() if k != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(GraphError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        build_decoder(GraphSpec(reference.config, "ort", "fp32", 64), tensors)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(reference: Reference) -> None:
    config = replace(reference.config, intermediate_size=96)
    with pytest.raises(GraphError, match=r"gate_proj.*\[128, 64\].*\[96, 64\]"):
        build_decoder(GraphSpec(config, "ort", "fp32", 64), reference.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "3 key/value heads"),
        ({"head_dim": 24}, "head_dim is 24"),
        ({"architecture": "FalconForCausalLM"}, "FalconForCausalLM.*MistralForCausalLM"),
    ],
)
def test_a_shape_that_no_kernel_takes_is_refused_before_anything_is_built(
    reference: Reference, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        GraphSpec(replace(reference.config, **change), "ort", "fp32", 64)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_too_few_heads_for_tensorrts_attention_is_said_before_tensorrt_says_it_its_way(
    reference: Reference, heads: int
) -> None:
    config = replace(reference.config, heads=heads, kv_heads=1)
    with pytest.raises(GraphError, match=rf"{heads} query heads; TensorRT .*fewer than 4.*--target cpu"):
        GraphSpec(config, "portable", "fp16", 64)
    # ONNX Runtime runs it
    GraphSpec(config, "portable", "fp32", 64)
    GraphSpec(config, "ort", "fp16", 64)


def test_a_weight_beyond_half_precision_is_refused_by_name(reference: Reference, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    big = LazyTensor(name, (64, 64), "F32", lambda: np.full((64, 64), 1e6, dtype=np.float32))
    model = build_decoder(GraphSpec(reference.config, "portable", "fp16", 64), {**reference.tensors, name: big})
    with pytest.raises(GraphError, match=r"layers\.0\.o\.weight.*fp16"):
        save_model(model, tmp_path / "model.onnx")


def test_a_folder_that_is_not_there_is_a_clear_error(reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nowhere"):
        save_model(build(reference), tmp_path / "nowhere" / "model.onnx")


@contextmanager
def largest_file(most_bytes: int) -> Iterator[None]:
    """Whatever this process writes beyond that is refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_last_bytes_is_an_error(tmp_path: Path) -> None:
    # a tensor that fits into the C library's buffer meets the full disk only when the file is closed
    weight = ir.Value(name="weight", const_value=ir.tensor(np.zeros(3000, np.int8), name="weight"))
    graph = ir.Graph([weight], [weight], nodes=[], initializers=[weight], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    save_model(model, tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx.data").stat().st_size
    for missing in (1, 2999):
        with largest_file(size - missing), pytest.raises(GraphError, match="cannot be written"):
            save_model(model, tmp_path / "less.onnx")
