"""The ONNX forms of a quantized linear: nodes and lazy initializers around one MatMul.

Each function takes a linear of an unquantized graph, rewires it, and gives the initializers that now
stand for its weight, in the order in which they are to be saved. No weight is read here: codes and
scales are made when the model is saved, one matrix at a time and from one reading.

    blocks      DequantizeLinear(axis=0, block_size) over INT4, UINT4 or INT8
    columns     DequantizeLinear with one scale over INT8 or FLOAT8E4M3FN, and a Mul [N] behind the MatMul
    activation  QuantizeLinear, DequantizeLinear with one static scale, before the MatMul
    nvfp4       FLOAT4E2M1 in blocks of 16 whose scales are dequantized themselves; the input through
                TensorRT's own operator, since ONNX has none that finds scales as it goes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import columns, nvfp4
from hermes_deploy.quantization.blocks import BlockForm, pack_nibbles, quantize_blocks
from hermes_deploy.quantization.linears import Linear
from hermes_deploy.quantization.together import Part, together

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
INT8 = np.dtype(np.int8)

TENSORRT = "trt"
DYNAMIC_FP4 = "TRT_FP4DynamicQuantize"
"""Domain and operator of TensorRT's ONNX parser."""

COLUMNS = "columns"
"""Key in a Mul's metadata_props: it multiplies the output of the linear of that name, column by column,
with what belongs to its weight."""


def in_blocks(
    linear: Linear,
    form: BlockForm,
    importance: npt.NDArray[np.float32] | None = None,
    directions: npt.NDArray[np.float32] | None = None,
) -> list[ir.Value]:
    """The weight in blocks along K; `importance` and `directions` as in `blocks.quantize_blocks`."""
    blocks, name = linear.rows // form.block_size, linear.weight.name or linear.name
    dtype = ir.DataType.INT8 if form.bits == 8 else ir.DataType.INT4 if form.symmetric else ir.DataType.UINT4
    scale = ir.DataType.from_numpy(form.scale_dtype)
    parts = [
        Part(name, dtype, (linear.rows, linear.columns)),
        Part(f"{name}.scale", scale, (blocks, linear.columns)),
    ]
    if not form.symmetric:
        parts.append(Part(f"{name}.zero_point", dtype, (blocks, linear.columns)))
    _check_unshared(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        result = quantize_blocks(linear.tiles(), form, linear.name, importance, directions)
        arrays = [result.codes, result.scales] + ([] if result.zero_points is None else [result.zero_points])
        return [
            ir.PackedTensor(array, part.dtype, shape=ir.Shape(part.shape), name=part.name)
            if part.dtype.bitwidth == 4
            else ir.Tensor(array.view(part.dtype.numpy()).reshape(part.shape), dtype=part.dtype, name=part.name)
            for part, array in zip(parts, arrays, strict=True)
        ]

    values = [_initializer(tensor) for tensor in together(parts, evaluate)]
    _dequantize(linear, values, axis=0, block_size=form.block_size)
    return values


def in_columns(linear: Linear, codes: np.dtype[Any], scale_dtype: np.dtype[Any]) -> list[ir.Value]:
    """The weight as INT8 or E4M3 `codes`, symmetric, one scale a column in two factors: one number
    before the multiplication, a vector [N] that multiplies the output.

    Not one DequantizeLinear with N scales: from that TensorRT makes a GEMM that writes its sums
    unscaled in fp16, where they overflow, and scales them in the next kernel (docs/tensorrt.md).
    """
    name = linear.weight.name or linear.name
    quantize_columns = columns.to_e4m3 if codes == E4M3 else columns.to_int8
    scale = ir.DataType.from_numpy(scale_dtype)
    parts = [
        Part(name, ir.DataType.from_numpy(codes), (linear.rows, linear.columns)),
        Part(f"{name}.scale", scale, ()),
        Part(f"{name}.columns", scale, (linear.columns,)),
    ]
    source = _source(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        made = quantize_columns(source(), scale_dtype, linear.name)
        return [ir.Tensor(array, name=part.name) for part, array in zip(parts, made, strict=True)]

    weight, step, factors = (_initializer(tensor) for tensor in together(parts, evaluate))
    middle = _initializer(ir.Tensor(np.zeros((), dtype=codes), name=f"{name}.zero_point"))
    _dequantize(linear, [weight, step, middle])
    sums = linear.node.outputs[0]
    scaled = ir.node("Mul", [sums, factors], name=f"{linear.name}.columns", metadata_props={COLUMNS: linear.name})
    final = scaled.outputs[0]
    final.name, sums.name = sums.name, f"{linear.name}.unscaled"
    final.type, final.shape = sums.type, sums.shape
    ir.convenience.replace_all_uses_with(sums, final)
    scaled.replace_input_with(0, sums)
    _graph_of(linear.node).insert_after(linear.node, scaled)
    return [weight, step, middle, factors]


def activation(linear: Linear, codes: np.dtype[Any], scale: npt.NDArray[Any]) -> list[ir.Value]:
    """The input through `codes` (INT8 or E4M3) with one static `scale`, of the activation's dtype."""
    step = _initializer(ir.Tensor(scale, name=f"{linear.name}.input.scale"))
    middle = _initializer(ir.Tensor(np.zeros((), dtype=codes), name=f"{linear.name}.input.zero_point"))
    coded = ir.node("QuantizeLinear", [linear.node.inputs[0], step, middle], name=f"{linear.name}.input.codes")
    value = ir.node("DequantizeLinear", [coded.outputs[0], step, middle], name=f"{linear.name}.input.value")
    for node in (coded, value):
        node.outputs[0].name = node.name
    _insert_before(linear.node, coded, value)
    linear.node.replace_input_with(0, value.outputs[0])
    return [step, middle]


def in_nvfp4(
    linear: Linear, scale_dtype: np.dtype[Any], importance: npt.NDArray[np.float32] | None = None
) -> list[ir.Value]:
    """The weight as NVFP4; the whole's scale in `scale_dtype`; `importance` as in `nvfp4.quantize_blocks`."""
    name, blocks = linear.weight.name or linear.name, linear.rows // nvfp4.BLOCK
    parts = [
        Part(name, ir.DataType.FLOAT4E2M1, (linear.rows, linear.columns)),
        Part(f"{name}.scale", ir.DataType.FLOAT8E4M3FN, (blocks, linear.columns)),
        Part(f"{name}.whole", ir.DataType.from_numpy(scale_dtype), ()),
    ]
    source = _source(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        codes, *rest = nvfp4.quantize_blocks(source(), scale_dtype, linear.name, importance)
        packed = pack_nibbles(codes.view(np.uint8))
        first = ir.PackedTensor(packed, parts[0].dtype, shape=ir.Shape(parts[0].shape), name=name)
        return [first, *(ir.Tensor(array, name=part.name) for part, array in zip(parts[1:], rest, strict=True))]

    weight, scale, whole = (_initializer(tensor) for tensor in together(parts, evaluate))
    node = ir.node("DequantizeLinear", [scale, whole], name=f"{linear.name}.weight.scale.value")
    node.outputs[0].name = node.name
    _insert_before(linear.node, node)
    _dequantize(linear, [weight, node.outputs[0]], axis=0, block_size=nvfp4.BLOCK)
    return [weight, scale, whole]


def dynamic_nvfp4(linear: Linear, whole: npt.NDArray[Any]) -> list[ir.Value]:
    """The input as NVFP4 with scales found for each block of 16 as it goes, under the static scale `whole`."""
    graph = _graph_of(linear.node)
    graph.opset_imports[TENSORRT] = 1
    name = f"{linear.name}.input"
    step = _initializer(ir.Tensor(whole, name=f"{name}.whole"))
    attributes = {"axis": -1, "block_size": nvfp4.BLOCK, "scale_type": ir.DataType.FLOAT8E4M3FN.value}
    coded = ir.node(
        DYNAMIC_FP4, [linear.node.inputs[0], step], attributes, domain=TENSORRT, num_outputs=2, name=f"{name}.codes"
    )
    scale = ir.node("DequantizeLinear", [coded.outputs[1], step], name=f"{name}.scale")
    along = {"axis": -1, "block_size": nvfp4.BLOCK}
    value = ir.node("DequantizeLinear", [coded.outputs[0], scale.outputs[0]], along, name=f"{name}.value")
    coded.outputs[0].name, coded.outputs[1].name = f"{name}.codes", f"{name}.scale.codes"
    for node in (scale, value):
        node.outputs[0].name = node.name
    _insert_before(linear.node, coded, scale, value)
    linear.node.replace_input_with(0, value.outputs[0])
    return [step]


def _source(linear: Linear) -> Callable[[], npt.NDArray[np.float32]]:
    _check_unshared(linear)
    return linear.float32


def _check_unshared(linear: Linear) -> None:
    users = linear.weight.uses()
    if len(users) != 1:
        raise QuantizationError(
            f"the weight of {linear.name} is used {len(users)} times and cannot be quantized for one of them; "
            'build the graph with embedding "fp16" or "fp32" instead of "tied"'
        )


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )


def _dequantize(linear: Linear, inputs: list[ir.Value], **attributes: int) -> None:
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{linear.name}.weight.value")
    node.outputs[0].name = node.name
    _insert_before(linear.node, node)
    linear.node.replace_input_with(1, node.outputs[0])


def _insert_before(place: ir.Node, *nodes: ir.Node) -> None:
    _graph_of(place).insert_before(place, nodes)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
