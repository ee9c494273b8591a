"""Rounding in blocks: laws that hold for any matrix, and agreement with ONNX Runtime's own reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.blocks import (
    BlockForm,
    dequantize_blocks,
    pack_nibbles,
    quantize_blocks,
    unpack_nibbles,
)

F32, F16 = np.dtype(np.float32), np.dtype(np.float16)
FORMS = [
    BlockForm(4, True, 32, F16),
    BlockForm(4, True, 64, F32),
    BlockForm(4, False, 32, F32),
    BlockForm(8, True, 32, F32),
]
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([64, 128]), st.integers(1, 9)),
    elements=st.floats(-4, 4, width=32).map(lambda x: x if abs(x) > 1e-4 else 0.0),
)


@given(codes=hnp.arrays(np.uint8, st.integers(0, 33), elements=st.integers(0, 15)))
def test_packed_codes_unpack_to_themselves(codes: np.ndarray) -> None:
    packed = pack_nibbles(codes)
    assert packed.size == (codes.size + 1) // 2
    assert (unpack_nibbles(packed, codes.size, signed=False) == codes).all()


@settings(max_examples=40, deadline=None)
@given(weight=matrices, form=st.sampled_from(FORMS))
def test_no_weight_moves_further_than_one_step_beyond_what_clipping_takes(weight: np.ndarray, form: BlockForm) -> None:
    quantized = quantize_blocks(weight, form)
    back = dequantize_blocks(quantized, form, len(weight))
    blocks = np.abs(weight - back).reshape(-1, form.block_size, weight.shape[1])
    span = np.abs(weight).reshape(blocks.shape).max(axis=1)
    levels = 7 if form.bits == 4 and form.symmetric else 127 if form.bits == 8 else 15
    allowed = span * (2 if not form.symmetric else 1) * 2.1 / levels + 1e-3
    assert (blocks.max(axis=1) <= allowed).all()
    assert (quantized.scales > 0).all()


@settings(max_examples=20, deadline=None)
@given(weight=matrices, form=st.sampled_from(FORMS))
def test_equal_weights_give_equal_bytes(weight: np.ndarray, form: BlockForm) -> None:
    one, two = quantize_blocks(weight, form), quantize_blocks(np.asfortranarray(weight), form)
    assert one.codes.tobytes() == two.codes.tobytes()
    assert one.scales.tobytes() == two.scales.tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_zero_stays_zero(form: BlockForm) -> None:
    weight = np.zeros((64, 3), np.float32)
    assert not dequantize_blocks(quantize_blocks(weight, form), form, 64).any()


@pytest.mark.parametrize("form", FORMS)
def test_tiny_weights_keep_their_sign_and_size(form: BlockForm) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 1e-5
    back = dequantize_blocks(quantize_blocks(weight, form), form, 64)
    assert np.linalg.norm(back - weight) < 0.15 * np.linalg.norm(weight)


def test_zero_points_and_a_searched_scale_each_make_less_error() -> None:
    weight = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    equal = np.ones(512, np.float32)

    def error(form: BlockForm, importance: np.ndarray | None = None) -> float:
        back = dequantize_blocks(quantize_blocks(weight, form, importance=importance), form, len(weight))
        return float(np.linalg.norm(back - weight) / np.linalg.norm(weight))

    asymmetric, symmetric = BlockForm(4, False, 32, F32), BlockForm(4, True, 32, F16)
    assert error(asymmetric, equal) < error(asymmetric) < 0.083
    assert error(asymmetric) < error(symmetric, equal) < error(symmetric) < 0.095
    assert error(BlockForm(8, True, 32, F32)) < 0.006


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(256, 64)).astype(np.float32)
    inputs = rng.normal(size=(400, 256)).astype(np.float32) * np.exp(rng.normal(size=256) * 2).astype(np.float32)
    form = BlockForm(4, True, 32, F16)

    def output_error(importance: np.ndarray | None) -> float:
        back = dequantize_blocks(quantize_blocks(weight, form, importance=importance), form, 256)
        return float(np.linalg.norm(inputs @ (back - weight)))

    assert output_error((inputs**2).mean(axis=0)) < 0.8 * output_error(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    weight = np.ones((64, 2), np.float32)
    weight[40, 1] = bad
    with pytest.raises(QuantizationError, match=r"layers\.3\.down.*damaged"):
        quantize_blocks(weight, FORMS[0], "layers.3.down")


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(QuantizationError, match="48 rows cannot be cut into blocks of 32"):
        quantize_blocks(np.ones((48, 2), np.float32), FORMS[0])


@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_reads_the_same_numbers_from_the_bytes(form: BlockForm, tmp_path: Path) -> None:
    weight = np.random.default_rng(2).normal(size=(128, 10)).astype(np.float32)
    quantized = quantize_blocks(weight, form)
    dtype = ir.DataType.INT8 if form.bits == 8 else ir.DataType.INT4 if form.symmetric else ir.DataType.UINT4

    def stored(array: np.ndarray, kind: ir.DataType, shape: tuple[int, ...], name: str) -> ir.Value:
        tensor: ir.TensorProtocol = (
            ir.PackedTensor(array, kind, shape=ir.Shape(shape), name=name)
            if kind.bitwidth == 4
            else ir.Tensor(array.view(kind.numpy()).reshape(shape), name=name)
        )
        return ir.Value(name=name, const_value=tensor, type=ir.TensorType(kind), shape=ir.Shape(shape))

    scale = ir.DataType.from_numpy(quantized.scales.dtype)
    inputs = [
        stored(quantized.codes, dtype, weight.shape, "codes"),
        stored(quantized.scales, scale, quantized.scales.shape, "scale"),
    ]
    if quantized.zero_points is not None:
        inputs.append(stored(quantized.zero_points, dtype, quantized.scales.shape, "zero"))
    node = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": form.block_size})
    node.outputs[0].name, node.outputs[0].type = "value", ir.TensorType(scale)
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=inputs, opset_imports={"": 24}, name="one")
    ir.save(ir.Model(graph, ir_version=12), tmp_path / "one.onnx")
    read = ort.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"]).run(None, {})[0]
    ours = dequantize_blocks(quantized, form, len(weight))
    assert np.allclose(read.astype(np.float32), ours, rtol=1e-3 if form.scale_dtype == F16 else 1e-6)
