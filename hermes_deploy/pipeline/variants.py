"""Which graphs a build makes: targets that can take the same graph share one.

A served variant (ONNX Runtime) is saved straight into the artifact; an engine's graph is work that
TensorRT reads and the artifact does not carry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_fused, save_model
from hermes_deploy.kernels import FUSED
from hermes_deploy.pipeline.events import Tell
from hermes_deploy.quantization import Linear, Preparation, find_linears, plan_block_size, quantize
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target

MODEL = "model.onnx"


@dataclass(frozen=True)
class Variant:
    """Targets of one dialect, activation and engine kind. `name` is its folder."""

    name: str
    targets: tuple[Target, ...]
    served: bool


def plan_variants(targets: tuple[Target, ...]) -> tuple[Variant, ...]:
    """One variant for each ONNX Runtime target, one for all TensorRT targets together."""
    variants = [Variant(t.name, (t,), served=True) for t in targets if t.engine == "onnxruntime"]
    engines = tuple(t for t in targets if t.engine == "tensorrt")
    if engines:
        variants.append(Variant("tensorrt", engines, served=False))
    return tuple(variants)


@dataclass(frozen=True)
class VariantSize:
    """Of a variant's graph, without reading a weight. `block_size` of 4-bit weights, None where nothing is blocked.

    `stored`: bytes of all weights as they will be saved; `largest`: of the largest matrix in float32;
    `token`: of the keys and values that one token of one chat leaves in the cache.
    """

    block_size: int | None
    stored: int
    largest: int
    token: int


def measure_variants(variants: tuple[Variant, ...], recipe: Recipe, checkpoint: Checkpoint) -> dict[str, VariantSize]:
    """The size of each variant, by name. Raises GraphError or QuantizationError for a model that cannot be built so."""
    return {variant.name: _measure(variant, recipe, checkpoint) for variant in variants}


def _measure(variant: Variant, recipe: Recipe, checkpoint: Checkpoint) -> VariantSize:
    config, target = checkpoint.config, variant.targets[0]
    # scales of an int8 cache come from calibration; the graph without them differs in nothing else
    model = build_decoder(replace(_spec(variant, recipe, checkpoint), kv=None), checkpoint.tensors)
    block = plan_block_size(model, recipe, target)
    linears = find_linears(model)
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    channels = 2 * config.layers * config.kv_heads * config.head_dim
    if recipe.kv == "int8":
        stored += 4 * channels  # each has a scale
    plain = 4 if target.activation == "fp32" else 2
    for linear in linears:
        precision = recipe.head_on(target) if linear.name == "head" else recipe.linear
        stored += _stored(linear, precision, block, plain) - linear.rows * linear.columns * plain
    largest = 4 * max(each.rows * each.columns for each in linears)
    return VariantSize(block, stored, largest, channels * _BITS[recipe.cache_on(target)] // 8)


_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "int4": 4, "w4a8": 4, "nvfp4": 4}
_NVFP4_BLOCK = 16


def _stored(linear: Linear, precision: str, block: int | None, plain: int) -> int:
    """Bytes of one matrix with its scales and zero points; `plain`: bytes of an activation."""
    codes = linear.rows * linear.columns * _BITS[precision] // 8
    if precision in ("fp32", "fp16"):
        return codes
    if precision == "nvfp4":
        return codes + linear.rows // _NVFP4_BLOCK * linear.columns
    blocked = precision in ("int4", "w4a8") or linear.name == "head"
    return codes + (linear.rows // block if blocked and block else 1) * linear.columns * (plain + 1)


def save_variant(
    variant: Variant, folder: Path, recipe: Recipe, checkpoint: Checkpoint, preparation: Preparation | None, tell: Tell
) -> None:
    """Writes the quantized graph of `variant` into `folder`, which exists: model.onnx and its data, and for a CPU
    the same graph for our own operators, where they can take it."""
    if preparation is not None:
        checkpoint = replace(checkpoint, tensors=preparation.tensors(checkpoint.config, checkpoint.tensors))
    cache_scales = None if preparation is None else preparation.cache
    model = build_decoder(_spec(variant, recipe, checkpoint), checkpoint.tensors, cache_scales)
    quantize(model, recipe, variant.targets[0], preparation)
    save_model(model, folder / MODEL, lambda _, done, total: tell(done, total, "tensors"))
    if variant.name == "cpu":
        save_fused(folder / MODEL, folder / FUSED)


def _spec(variant: Variant, recipe: Recipe, checkpoint: Checkpoint) -> GraphSpec:
    target = variant.targets[0]
    return GraphSpec(
        checkpoint.config,
        target.dialect,
        target.activation,
        recipe.max_context,
        embedding=recipe.embedding,
        kv=recipe.cache_on(target),
    )
