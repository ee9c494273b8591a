"""Turns the linears of a decoder graph into quantized ones, in place and lazily.

Takes an `onnx_ir.Model` from `graphs/`, a recipe and a target; afterwards each linear reads its
weight through a standard DequantizeLinear, in the form that becomes a low-precision kernel there:

    int4, TensorRT      INT4, symmetric, scale in the activation dtype (else the fusion is lost)
    int4, ONNX Runtime  UINT4 with zero points: as fast in MatMulNBits and a sixth less error
    int8 head           INT8, symmetric, blocks; ONNX Runtime only
    fp8                 E4M3 weight per column; the input goes through a static per-tensor Q/DQ

No weight is read here: codes and scales are made when the model is saved, one matrix at a time and
from one reading. Files, tokenizers and gates are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import QuantizationError, TargetError
from hermes_deploy.quantization.blocks import BlockForm, quantize_blocks
from hermes_deploy.quantization.calibration import ActivationRanges
from hermes_deploy.quantization.float8 import E4M3, quantize_columns, scale_for
from hermes_deploy.quantization.linears import Linear, choose_block_size, find_linears
from hermes_deploy.quantization.together import Part, together
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target

_NUMPY: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}


@dataclass(frozen=True)
class QuantizationReport:
    """`forms`: what each linear became, by name ("int4 block 64", "fp8", "fp16").

    `block_size` along K, None where nothing is blocked. `weight_bytes`: bytes of all linears as
    they will be saved, scales and zero points included.
    """

    forms: dict[str, str]
    block_size: int | None
    weight_bytes: int


def check_recipe(recipe: Recipe, target: Target) -> None:
    """Raises TargetError when `target` cannot take the recipe's linears or its head."""
    recipe.check_target(target)
    plain = target.activation
    heads = {plain, "int4", "int8"} if target.engine == "onnxruntime" else {plain, "int4"}
    if "int4" not in target.precisions:
        heads.discard("int4")
    if recipe.head not in heads:
        raise TargetError(
            f"recipe {recipe.name!r} asks for a head in {recipe.head}; target {target.name!r} ({target.title}) "
            f"takes: {', '.join(sorted(heads))}. Set `head` in the recipe to one of these."
        )


def plan_block_size(model: ir.Model, recipe: Recipe, target: Target) -> int | None:
    """The block size along K that `quantize` will use, None where nothing is blocked. Reads no weight.

    Raises QuantizationError when none fits, or the graph is not an unquantized one.
    """
    blocked = [linear for linear in find_linears(model) if _wanted(linear, recipe) in ("int4", "int8")]
    return choose_block_size(blocked, target.block_sizes) if blocked else None


def _wanted(linear: Linear, recipe: Recipe) -> str:
    return recipe.head if linear.name == "head" else recipe.linear


def quantize(
    model: ir.Model, recipe: Recipe, target: Target, ranges: ActivationRanges | None = None
) -> QuantizationReport:
    """Rewrites every linear of `model` as the recipe says for `target`.

    `ranges` are needed by fp8; with them int4 rounds for what a layer computes instead of for the
    weights alone, which matters a lot (see `blocks`). The graph's activation dtype must be the target's.
    Raises TargetError for a recipe that the target cannot take, QuantizationError when no block
    size fits, ranges are missing, or the graph is not an unquantized one of that target.
    """
    check_recipe(recipe, target)
    linears = find_linears(model)
    _check_activation(linears, target)
    wanted = {linear.name: _wanted(linear, recipe) for linear in linears}
    block = plan_block_size(model, recipe, target)
    forms: dict[str, str] = {}
    size = 0
    made: dict[str, list[ir.Value]] = {}
    for linear in linears:
        precision = wanted[linear.name]
        forms[linear.name] = precision
        if precision in ("int4", "int8"):
            assert block is not None
            symmetric = precision == "int8" or target.engine == "tensorrt"
            form = BlockForm(4 if precision == "int4" else 8, symmetric, block, _NUMPY[target.activation])
            importance = None if ranges is None else ranges.power[linear.name]
            made[linear.weight.name or ""] = _block_linear(linear, form, importance)
            forms[linear.name] = f"{precision} block {block}"
        elif precision == "fp8":
            made[linear.weight.name or ""] = _fp8_linear(linear, _input_peak(linear, ranges), _NUMPY[target.activation])
    _store(model, made)
    for linear in linears:
        values = made.get(linear.weight.name or "", [linear.weight])
        size += sum(value.const_value.nbytes for value in values if value.const_value is not None)
    return QuantizationReport(forms, block, size)


def _check_activation(linears: list[Linear], target: Target) -> None:
    for linear in linears:
        dtype = linear.weight.dtype
        if dtype is None or dtype.numpy() != _NUMPY[target.activation]:
            raise QuantizationError(
                f"the weight of {linear.name} is {dtype}; target {target.name} computes in {target.activation}. "
                f'Build the graph with activation "{target.activation}".'
            )


def _input_peak(linear: Linear, ranges: ActivationRanges | None) -> float:
    if ranges is None or linear.name not in ranges.largest:
        raise QuantizationError(
            f"fp8 needs the range of the input of {linear.name}; run quantization.calibrate over a few chats first"
        )
    return ranges.largest[linear.name]


def _block_linear(linear: Linear, form: BlockForm, importance: npt.NDArray[np.float32] | None) -> list[ir.Value]:
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
        result = quantize_blocks(source.numpy(), form, linear.name, importance)
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


def _fp8_linear(linear: Linear, peak: float, dtype: np.dtype[Any]) -> list[ir.Value]:
    name = linear.weight.name or linear.name
    scale = ir.DataType.from_numpy(dtype)
    parts = [
        Part(name, ir.DataType.FLOAT8E4M3FN, (linear.rows, linear.columns)),
        Part(f"{name}.scale", scale, (linear.columns,)),
    ]
    source = _source(linear)

    def evaluate() -> list[ir.TensorProtocol]:
        codes, scales = quantize_columns(source.numpy(), dtype, linear.name)
        return [ir.Tensor(codes, name=parts[0].name), ir.Tensor(scales, name=parts[1].name)]

    def zero(shape: tuple[int, ...], what: str) -> ir.Value:
        return _initializer(ir.Tensor(np.zeros(shape, dtype=E4M3), name=f"{name}.{what}"))

    weight = [*(_initializer(tensor) for tensor in together(parts, evaluate)), zero((linear.columns,), "zero_point")]
    _dequantize(linear, weight, axis=1)
    step = _initializer(ir.Tensor(scale_for(peak, dtype), name=f"{linear.name}.input.scale"))
    middle = _initializer(ir.Tensor(np.zeros((), dtype=E4M3), name=f"{linear.name}.input.zero_point"))
    coded = ir.node("QuantizeLinear", [linear.node.inputs[0], step, middle], name=f"{linear.name}.input.codes")
    value = ir.node("DequantizeLinear", [coded.outputs[0], step, middle], name=f"{linear.name}.input.value")
    for node in (coded, value):
        node.outputs[0].name = node.name
    _insert_before(linear.node, coded, value)
    linear.node.replace_input_with(0, value.outputs[0])
    return [*weight, step, middle]


def _source(linear: Linear) -> ir.TensorProtocol:
    users = linear.weight.uses()
    if len(users) != 1:
        raise QuantizationError(
            f"the weight of {linear.name} is used {len(users)} times and cannot be quantized for one of them; "
            'build the graph with embedding "fp16" or "fp32" instead of "tied"'
        )
    assert linear.weight.const_value is not None
    return linear.weight.const_value


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


def _store(model: ir.Model, made: dict[str, list[ir.Value]]) -> None:
    """Puts the parts of a weight where the weight stood, side by side: they are saved in this order."""
    initializers = model.graph.initializers
    kept = list(initializers.values())
    initializers.clear()
    for value in kept:
        for each in made.get(value.name or "", [value]):
            initializers[each.name or ""] = each
