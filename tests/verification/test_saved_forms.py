"""Stored weights and coded inputs are read back as ONNX Runtime computes them, whatever their form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.errors import GateError
from hermes_deploy.graphs import ATTRIBUTE_LINEAR
from hermes_deploy.verification.inputs import BlockCodes, StaticCodes
from hermes_deploy.verification.late_weights import wait_for_inputs
from hermes_deploy.verification.stored import picked_columns, picked_rows, rows_of
from hermes_deploy.verification.tensors import SavedLinear, saved_linears

K, N = 32, 6
RANDOM = np.random.default_rng(0)
Weight = list[tuple[np.ndarray, ir.DataType]]


def linear_graph(path: Path, parts: Sequence[ir.TensorProtocol], chain: Sequence[Mapping[str, Any]]) -> ir.Model:
    """x -> MatMul(x, weight), the weight through `chain` of DequantizeLinears: [0] gives the weight, every
    further one the scale of the one before. `parts`: the tensors of the last one first."""
    initializers = {
        part.name or "": ir.Value(
            name=part.name, type=ir.TensorType(part.dtype), shape=ir.Shape(part.shape.numpy()), const_value=part
        )
        for part in parts
    }
    nodes: list[ir.Node] = []
    scale: ir.Value | None = None
    for attributes in reversed(chain):
        inputs = [initializers[name] if name else None for name in attributes["inputs"]]
        if scale is not None:
            inputs[1] = scale
        kept = {name: value for name, value in attributes.items() if name != "inputs"}
        nodes.append(ir.node("DequantizeLinear", inputs, kept))
        scale = nodes[-1].outputs[0]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", K]))
    weight = scale if scale is not None else initializers["w"]
    product = ir.node("MatMul", [x, weight], metadata_props={ATTRIBUTE_LINEAR: "layers.0.o"})
    product.outputs[0].name = "y"
    product.outputs[0].type, product.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", N])
    graph = ir.Graph(
        [x], product.outputs, nodes=[*nodes, product], initializers=list(initializers.values()), opset_imports={"": 24}
    )
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"value_{index}"
    model = ir.Model(graph, ir_version=12)
    ir.save(model, path, external_data="weights.data", size_threshold_bytes=0)
    return ir.load(path)


def run(model: ir.Model, folder: Path, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def tensor(name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
    if dtype is not None and dtype.bitwidth == 4:
        flat = array.reshape(-1).astype(np.uint8) & 15
        flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
        return ir.PackedTensor(flat[0::2] | flat[1::2] << 4, dtype, shape=ir.Shape(array.shape), name=name)
    return ir.Tensor(array, name=name)


def codes(low: int, high: int, shape: tuple[int, ...] = (K, N), dtype: Any = np.int8) -> np.ndarray:
    return RANDOM.integers(low, high, size=shape).astype(dtype)


def scales(*shape: int) -> np.ndarray:
    return (RANDOM.random(shape) + 0.5).astype(np.float32)


INT4, UINT4 = ir.DataType.INT4, ir.DataType.UINT4
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
FORMS: dict[str, tuple[list[ir.TensorProtocol], list[dict[str, Any]]]] = {
    "one scale, int8": ([tensor("w", codes(-127, 128)), tensor("s", scales())], [{"inputs": ["w", "s"]}]),
    "a scale a column, with zero points": (
        [tensor("w", codes(-127, 128)), tensor("s", scales(N)), tensor("z", codes(-9, 9, (N,)))],
        [{"inputs": ["w", "s", "z"], "axis": 1}],
    ),
    "a scale a row": ([tensor("w", codes(-127, 128)), tensor("s", scales(K))], [{"inputs": ["w", "s"], "axis": 0}]),
    "fp8 by column": (
        [tensor("w", RANDOM.normal(size=(K, N)).astype(E4M3)), tensor("s", scales(N))],
        [{"inputs": ["w", "s"], "axis": 1}],
    ),
    "int4 in blocks": (
        [tensor("w", codes(-8, 8), INT4), tensor("s", scales(K // 8, N))],
        [{"inputs": ["w", "s"], "axis": 0, "block_size": 8}],
    ),
    "uint4 in blocks, with zero points": (
        [tensor("w", codes(0, 16), UINT4), tensor("s", scales(2, N)), tensor("z", codes(0, 16, (2, N)), UINT4)],
        [{"inputs": ["w", "s", "z"], "axis": 0, "block_size": 16}],
    ),
    "int8 in blocks whose scales are fp8 with one scale": (
        [tensor("w", codes(-127, 128)), tensor("s", scales(2, N).astype(E4M3)), tensor("t", scales())],
        [{"inputs": ["w", "s"], "axis": 0, "block_size": 16}, {"inputs": ["s", "t"]}],
    ),
    "float32 as it is": ([tensor("w", RANDOM.normal(size=(K, N)).astype(np.float32))], []),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_read_back_as_it_is_computed_with(form: str, tmp_path: Path) -> None:
    model = linear_graph(tmp_path / "model.onnx", *FORMS[form])
    (linear,) = saved_linears(tmp_path / "model.onnx")
    identity = np.eye(K, dtype=np.float32)
    assert np.allclose(linear.matrix(), run(model, tmp_path, identity), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_waits_for_its_input_is_the_same_weight(form: str, tmp_path: Path) -> None:
    model = linear_graph(tmp_path / "model.onnx", *FORMS[form])
    x = RANDOM.normal(size=(5, K)).astype(np.float32)
    before = run(model, tmp_path, x)
    wait_for_inputs(model)
    assert any(node.op_type == "Reshape" for node in model.graph)
    assert np.array_equal(run(model, tmp_path, x), before)


def test_a_weight_that_is_computed_otherwise_is_refused(tmp_path: Path) -> None:
    model = linear_graph(tmp_path / "model.onnx", *FORMS["int4 in blocks"])
    next(node for node in model.graph if node.op_type == "DequantizeLinear").op_type = "BitShift"
    ir.save(model, tmp_path / "other.onnx")
    with pytest.raises(GateError, match=r"layers\.0\.o is not stored in the graph"):
        list(saved_linears(tmp_path / "other.onnx"))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 7), cut=st.integers(0, 9))
def test_four_bit_codes_are_the_same_wherever_they_are_cut(
    rows: int, columns: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    array = np.random.default_rng(rows * 10 + columns).integers(0, 16, size=(rows, columns))
    (folder / "data").write_bytes(tensor("w", array, UINT4).tobytes())
    stored = ir.ExternalTensor("data", 0, None, UINT4, shape=ir.Shape(array.shape), name="w", base_dir=folder)
    cut = min(cut, rows)
    both = np.concatenate([rows_of(stored, 0, cut), rows_of(stored, cut, rows)]) if cut else rows_of(stored, 0, rows)
    assert np.array_equal(both, array)
    picked = np.array([rows - 1, 0, rows // 2])
    assert np.array_equal(picked_rows(stored, picked), array[picked])
    assert np.array_equal(picked_columns(stored, picked % columns), array[:, picked % columns])


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    linear_graph(tmp_path / "model.onnx", *FORMS["int4 in blocks"])
    (linear,) = saved_linears(tmp_path / "model.onnx")
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(GateError, match="build again"):
        linear.matrix()


@pytest.mark.parametrize("dtype", [np.dtype(np.int8), np.dtype(np.uint8), E4M3])
def test_coded_inputs_are_those_of_onnx_runtime(dtype: np.dtype[Any]) -> None:
    x = np.concatenate([RANDOM.normal(size=200) * 3, np.linspace(-3, 3, 97), [1e6, -1e6]]).astype(np.float32)[:, None]
    zero = np.asarray(7 if dtype == np.uint8 else 0).astype(dtype)
    scale = np.float32(0.0625)
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, 1]))
    terms = [
        ir.Value(
            name=name, type=ir.TensorType(ir.Tensor(a).dtype), shape=ir.Shape([]), const_value=ir.Tensor(a, name=name)
        )
        for name, a in (("s", np.asarray(scale)), ("z", zero))
    ]
    there = ir.node("QuantizeLinear", [value, *terms])
    back = ir.node("DequantizeLinear", [there.outputs[0], *terms])
    there.outputs[0].name, back.outputs[0].name = "codes", "y"
    back.outputs[0].type, back.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph = ir.Graph([value], back.outputs, nodes=[there, back], initializers=terms, opset_imports={"": 24})
    wanted = run(ir.Model(graph, ir_version=12), Path(), x)
    found = StaticCodes(scale.reshape(1), zero.astype(np.float32).reshape(1), dtype)(x)
    assert np.array_equal(found, wanted)


def test_inputs_in_blocks_keep_their_largest_value_within_half_a_code() -> None:
    x = RANDOM.normal(size=(3, 64)).astype(np.float32) * np.float32(10.0) ** RANDOM.integers(-2, 3, size=(3, 64))
    found = BlockCodes(float(np.abs(x).max()) / (6 * 448))(x.astype(np.float32))
    blocks, wanted = found.reshape(3, 4, 16), x.reshape(3, 4, 16)
    peaks = np.abs(wanted).max(axis=2)
    assert np.all(np.abs(blocks - wanted).max(axis=2) <= peaks * (1 / 6 + 0.08))
    assert np.array_equal(BlockCodes(0.01)(np.zeros((1, 16), np.float32)), np.zeros((1, 16), np.float32))


def test_slabs_put_together_are_the_matrix() -> None:
    weight = scales(1000, 5000)
    linear = SavedLinear("head", ir.Tensor(weight, name="w"), scales(5000), None, 1)
    tops = [top for top, _ in linear.slabs()]
    assert len(tops) > 1
    assert np.array_equal(np.concatenate([piece for _, piece in linear.slabs()]), linear.matrix())
