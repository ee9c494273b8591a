"""Which graphs a build makes: targets that can take the same graph share one.

A served variant (ONNX Runtime) is saved straight into the artifact; an engine's graph is work that
TensorRT reads and the artifact does not carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.pipeline.events import Tell
from hermes_deploy.quantization import ActivationRanges, plan_block_size, quantize
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


def check_variants(variants: tuple[Variant, ...], recipe: Recipe, checkpoint: Checkpoint) -> dict[str, int | None]:
    """The INT4 block size of each variant, None where nothing is blocked. Reads no weight.

    Raises GraphError or QuantizationError for a model that cannot be built so.
    """
    return {v.name: plan_block_size(_graph(v, recipe, checkpoint), recipe, v.targets[0]) for v in variants}


def save_variant(
    variant: Variant, folder: Path, recipe: Recipe, checkpoint: Checkpoint, ranges: ActivationRanges | None, tell: Tell
) -> None:
    """Writes the quantized graph of `variant` into `folder`, which exists: model.onnx and its data."""
    model = _graph(variant, recipe, checkpoint)
    quantize(model, recipe, variant.targets[0], ranges)
    save_model(model, folder / MODEL, lambda _, done, total: tell(done, total, "tensors"))


def _graph(variant: Variant, recipe: Recipe, checkpoint: Checkpoint) -> ir.Model:
    target = variant.targets[0]
    spec = GraphSpec(
        checkpoint.config,
        target.dialect,
        target.activation,
        recipe.max_context,
        # the table is only looked up: fp16 halves it, and a quantized recipe has no use for more
        embedding="fp32" if recipe.linear == "fp32" else "fp16",
    )
    return build_decoder(spec, checkpoint.tensors)
