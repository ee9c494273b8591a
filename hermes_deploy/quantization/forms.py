"""The ONNX forms of a quantized linear: nodes and lazy initializers around one MatMul.

Each function takes a linear of an unquantized graph, rewires it, and gives the initializers that now
stand for its weight, in the order in which they are to be saved. No weight is read here: codes and
scales are made when the model is saved, one matrix at a time and from one reading.

    blocks      DequantizeLinear(axis=0, block_size) over INT4, UINT4 or INT8
    int8        DequantizeLinear(axis=1) over INT8, one scale a column
    fp8         the same over FLOAT8E4M3FN
    activation  QuantizeLinear, DequantizeLinear with one static scale, before the MatMul
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import float8, int8
from hermes_deploy.quantization.blocks import BlockForm, quantize_blocks
from hermes_deploy.quantization.linears import Linear
from hermes_deploy.quantization.together import Part, together

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
INT8 = np.dtype(np.int8)


def in_blocks(linear: Linear, form: BlockForm, importance: npt.NDArray[np.float32] | None) -> list[ir.Value]:
    """The weight in blocks along K; `importance` [K] as in `blocks.quantize_blocks`."""
    blocks, name = linear.rows // form.block_size, linear.weight.name or linear.name
    dtype = ir.DataType.INT8 if form.bits == 8 else ir.DataType.INT4 if form.symmetric else ir.DataType.UINT4
    scale = ir.DataType.from_numpy(form.scale_dtype)
    parts = [
        Part(name, dtype, (linear.rows, linear.columns)),
        Part(f"{name}.scale", scale, (blocks, linear.columns)),
    ]
    if not form.symmetric:
        parts.append(Part(f"{name}.zero_point", dtype, (blocks, linear.columns)))
    source = _source(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        result = quantize_blocks(source(), form, linear.name, importance)
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
    """The weight as INT8 or E4M3 `codes`, symmetric, one scale of `scale_dtype` a column."""
    name = linear.weight.name or linear.name
    quantize_columns = float8.quantize_columns if codes == E4M3 else int8.quantize_columns
    parts = [
        Part(name, ir.DataType.from_numpy(codes), (linear.rows, linear.columns)),
        Part(f"{name}.scale", ir.DataType.from_numpy(scale_dtype), (linear.columns,)),
    ]
    source = _source(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        made = quantize_columns(source(), scale_dtype, linear.name)
        return [ir.Tensor(array, name=part.name) for part, array in zip(parts, made, strict=True)]

    zero = _initializer(ir.Tensor(np.zeros(linear.columns, dtype=codes), name=f"{name}.zero_point"))
    weight = [*(_initializer(tensor) for tensor in together(parts, evaluate)), zero]
    _dequantize(linear, weight, axis=1)
    return weight


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


def _source(linear: Linear) -> Callable[[], npt.NDArray[np.float32]]:
    users = linear.weight.uses()
    if len(users) != 1:
        raise QuantizationError(
            f"the weight of {linear.name} is used {len(users)} times and cannot be quantized for one of them; "
            'build the graph with embedding "fp16" or "fp32" instead of "tied"'
        )
    return linear.float32


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )


def _dequantize(linear: Linear, inputs: list[ir.Value], axis: int, block_size: int | None = None) -> None:
    attributes = {"axis": axis} if block_size is None else {"axis": axis, "block_size": block_size}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{linear.name}.weight.value")
    node.outputs[0].name = node.name
    _insert_before(linear.node, node)
    linear.node.replace_input_with(1, node.outputs[0])


def _insert_before(place: ir.Node, *nodes: ir.Node) -> None:
    graph = place.graph
    assert graph is not None
    graph.insert_before(place, nodes)
