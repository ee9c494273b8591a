"""Turns the linears of a decoder graph into quantized ones, in place and lazily.

Takes an `onnx_ir.Model` from `graphs/`, a recipe and a target; afterwards each linear reads its
weight through a standard DequantizeLinear, in the form that becomes a low-precision kernel there:

    int4, TensorRT      INT4, symmetric, scale in the activation dtype (else the fusion is lost)
    int4, ONNX Runtime  UINT4 with zero points: as fast in MatMulNBits and a sixth less error
    int8 head           INT8, symmetric, blocks; ONNX Runtime only
    int8                INT8 weight per column; the input goes through a static per-tensor INT8 Q/DQ
    fp8                 E4M3 weight per column; the input goes through a static per-tensor E4M3 Q/DQ
    w4a8                INT4 weight as for TensorRT; the input goes through a static E4M3 Q/DQ
    nvfp4               E2M1 weight in blocks of 16; the input is quantized so too, block by block, as it comes

What keys and values are kept in stands in the graph already; here it is held against the recipe.
A linear that the preparation keeps stays a plain MatMul in the activation dtype. No weight is read
here (see `forms`). Files, tokenizers and gates are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import forms, nvfp4
from hermes_deploy.quantization.blocks import BlockForm
from hermes_deploy.quantization.calibration import ActivationRanges
from hermes_deploy.quantization.columns import LARGEST_E4M3, LARGEST_INT8, scale_for
from hermes_deploy.quantization.linears import Linear, choose_block_size, find_linears
from hermes_deploy.quantization.preparation import Preparation
from hermes_deploy.recipes import Recipe, check_target
from hermes_deploy.targets import Target

_NUMPY: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}

MOST_KEPT = 0.25
"""Share of the linears that may stay unquantized: over it the recipe's name would not be true."""


@dataclass(frozen=True)
class QuantizationReport:
    """`forms`: what each linear became, by name ("int4 block 64", "fp8", "fp16").

    `kept`: why a linear stayed in the activation dtype against the recipe. `block_size` along K, None
    where nothing is blocked. `weight_bytes`: bytes of all linears as they will be saved, scales and
    zero points included.
    """

    forms: dict[str, str]
    kept: dict[str, str]
    block_size: int | None
    weight_bytes: int


def plan_block_size(model: ir.Model, recipe: Recipe, target: Target) -> int | None:
    """The block size along K that `quantize` will use, None where nothing is blocked. Reads no weight.

    Raises QuantizationError when none fits, or the graph is not an unquantized one.
    """
    blocked = [linear for linear in find_linears(model) if _in_blocks(linear, recipe)]
    return choose_block_size(blocked, target.block_sizes, recipe.block_size) if blocked else None


def quantize(
    model: ir.Model, recipe: Recipe, target: Target, preparation: Preparation | ActivationRanges | None = None
) -> QuantizationReport:
    """Rewrites every linear of `model` as the recipe says for `target`.

    `preparation`: needed by a recipe with calibration chats; `model` must have been built from its
    `tensors`. With it weights are rounded for what a layer computes instead of for themselves alone,
    which matters a lot (see `blocks`). The graph's activation dtype must be the target's.
    Raises TargetError for a recipe that the target cannot take, QuantizationError when no block size
    fits, the preparation is missing or keeps too much, or the graph is not an unquantized one of that target.
    """
    check_target(recipe, target)
    linears = find_linears(model)
    _check_activation(linears, target)
    _check_cache(model, recipe, target)
    if recipe.calibration_chats and preparation is None:
        raise QuantizationError(f"recipe {recipe.name} needs a calibration; run quantization.prepare over a few chats")
    kept = _kept(linears, recipe, preparation)
    block = plan_block_size(model, recipe, target)
    found: dict[str, str] = {}
    size = 0
    made: dict[str, list[ir.Value]] = {}
    for linear in linears:
        precision = target.activation if linear.name in kept else _wanted(linear, recipe, target)
        values = _rewrite(linear, precision, target, block, preparation)
        blocked = linear.name not in kept and _in_blocks(linear, recipe)
        found[linear.name] = f"{precision} block {block}" if blocked else precision
        if values:
            made[linear.weight.name or ""] = values
        size += sum(v.const_value.nbytes for v in values or [linear.weight] if v.const_value is not None)
    _store(model, made)
    return QuantizationReport(found, kept, block, size)


def _rewrite(
    linear: Linear,
    precision: str,
    target: Target,
    block: int | None,
    preparation: Preparation | ActivationRanges | None,
) -> list[ir.Value]:
    """Gives `linear` its form; the initializers in place of its weight, none when it stays as it is."""
    dtype = _NUMPY[target.activation]
    importance = None if preparation is None else preparation.power[linear.name]
    if precision == "int8" and linear.name != "head":
        scale = scale_for(_peak(linear, preparation), dtype, LARGEST_INT8)
        return [*forms.in_columns(linear, forms.INT8, dtype), *forms.activation(linear, forms.INT8, scale)]
    if precision in ("int4", "int8", "w4a8"):
        assert block is not None
        symmetric = precision == "int8" or target.engine == "tensorrt"
        form = BlockForm(8 if precision == "int8" else 4, symmetric, block, dtype)
        directions = preparation.directions.get(linear.name) if isinstance(preparation, Preparation) else None
        weight = forms.in_blocks(linear, form, importance, directions)
        if precision != "w4a8":
            return weight
        return [
            *weight,
            *forms.activation(linear, forms.E4M3, scale_for(_peak(linear, preparation), dtype, LARGEST_E4M3)),
        ]
    if precision == "fp8":
        scale = scale_for(_peak(linear, preparation), dtype, LARGEST_E4M3)
        return [*forms.in_columns(linear, forms.E4M3, dtype), *forms.activation(linear, forms.E4M3, scale)]
    if precision == "nvfp4":
        whole = scale_for(_peak(linear, preparation), dtype, nvfp4.LARGEST)
        return [*forms.in_nvfp4(linear, dtype, importance), *forms.dynamic_nvfp4(linear, whole)]
    if precision != target.activation:
        raise QuantizationError(f"there is no form for {precision} linears on {target.name}")
    return []


def _wanted(linear: Linear, recipe: Recipe, target: Target) -> str:
    return recipe.head_on(target) if linear.name == "head" else recipe.linear


def _in_blocks(linear: Linear, recipe: Recipe) -> bool:
    return (recipe.head if linear.name == "head" else recipe.linear) in (
        ("int4", "int8") if linear.name == "head" else ("int4", "w4a8")
    )


def _kept(linears: list[Linear], recipe: Recipe, preparation: Preparation | ActivationRanges | None) -> dict[str, str]:
    reasons: Mapping[str, str] = preparation.kept if isinstance(preparation, Preparation) else {}
    names = [linear.name for linear in linears if linear.name != "head"]
    if unknown := sorted(reasons.keys() - set(names)):
        raise QuantizationError(f"the preparation keeps {unknown[0]}, which is no linear of this decoder")
    if len(reasons) > MOST_KEPT * len(names):
        name, why = next(iter(reasons.items()))
        raise QuantizationError(
            f"{len(reasons)} of {len(names)} linears would stay unquantized, over {MOST_KEPT:.0%}: that is not "
            f"{recipe.name}. The first is {name}: {why}. Use another recipe, or other calibration chats."
        )
    return dict(reasons)


def _check_activation(linears: list[Linear], target: Target) -> None:
    for linear in linears:
        dtype = linear.weight.dtype
        if dtype is None or dtype.numpy() != _NUMPY[target.activation]:
            raise QuantizationError(
                f"the weight of {linear.name} is {dtype}; target {target.name} computes in {target.activation}. "
                f'Build the graph with activation "{target.activation}".'
            )


def _check_cache(model: ir.Model, recipe: Recipe, target: Target) -> None:
    built, wanted = model.metadata_props.get("kv"), recipe.cache_on(target)
    if built != wanted:
        raise QuantizationError(
            f"the graph keeps keys and values in {built}; recipe {recipe.name} on {target.name} in {wanted}. "
            f'Build the graph with kv "{wanted}".'
        )


def _peak(linear: Linear, preparation: Preparation | ActivationRanges | None) -> float:
    if preparation is None or linear.name not in preparation.largest:
        raise QuantizationError(
            f"the preparation has no range for the input of {linear.name}; run quantization.prepare over a few chats"
        )
    return preparation.largest[linear.name]


def _store(model: ir.Model, made: dict[str, list[ir.Value]]) -> None:
    """Puts the parts of a weight where the weight stood, side by side: they are saved in this order."""
    initializers = model.graph.initializers
    kept = list(initializers.values())
    initializers.clear()
    for value in kept:
        for each in made.get(value.name or "", [value]):
            initializers[each.name or ""] = each
