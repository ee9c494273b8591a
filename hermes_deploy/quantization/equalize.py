"""Moves magnitude between neighbouring matrices of a layer without changing what it computes.

Dividing a linear's inputs by `s` and multiplying the matching columns of its weight by `s` is the
identity; the division is done by whatever makes the inputs, so no graph changes:

    qkv, gate_up   the norm before them is divided
    o              the value rows of v_proj are divided; one scale serves all query heads of a kv head
    down           the rows of up_proj are divided (silu(gate) * up is linear in up)

This is what AWQ (arXiv:2306.00978) and SmoothQuant (arXiv:2211.10438) both stand on. Pure and lazy:
a tensor is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import QuantizationError

Float = npt.NDArray[np.float32]


def fold(
    config: DecoderConfig, tensors: Mapping[str, LazyTensor], scales: Mapping[str, Float]
) -> Mapping[str, LazyTensor]:
    """The same model with `scales` of linears ("layers.0.qkv" -> [K], positive) folded in.

    Tensors that no scale touches are the same objects. Raises QuantizationError for a scale of no
    linear of this model, of the wrong shape, not positive and finite, or of an `o` that differs
    between the query heads of one kv head.
    """
    folded = dict(tensors)
    inputs: dict[str, Float] = {}
    outputs: dict[str, Float] = {}
    for name, scale in scales.items():
        _check(config, name, scale)
        _, layer, part = name.split(".")
        own, at = f"model.layers.{layer}.", f"model.layers.{layer}.self_attn."
        if part == "qkv":
            outputs[own + "input_layernorm.weight"] = scale
            inputs |= {f"{at}{each}_proj.weight": scale for each in "qkv"}
        elif part == "o":
            outputs[at + "v_proj.weight"] = of_values(config, scale)
            inputs[at + "o_proj.weight"] = scale
        elif part == "gate_up":
            outputs[own + "post_attention_layernorm.weight"] = scale
            inputs |= {f"{own}mlp.{each}_proj.weight": scale for each in ("gate", "up")}
        else:
            outputs[own + "mlp.up_proj.weight"] = scale
            inputs[own + "mlp.down_proj.weight"] = scale
    for name in inputs | outputs:
        folded[name] = _scaled(tensors[name], inputs.get(name), outputs.get(name))
    return folded


def of_values(config: DecoderConfig, scale: Float) -> Float:
    """The part of an `o` scale [heads * head_dim] that v_proj's outputs [kv_heads * head_dim] carry."""
    heads = scale.reshape(config.kv_heads, -1, config.head_dim)
    return np.ascontiguousarray(heads[:, 0].reshape(-1))


def for_queries(config: DecoderConfig, scale: Float) -> Float:
    """[kv_heads * head_dim] -> [heads * head_dim]: every query head reads its kv head's values."""
    heads = scale.reshape(config.kv_heads, 1, config.head_dim)
    return np.ascontiguousarray(np.repeat(heads, config.heads // config.kv_heads, axis=1).reshape(-1))


def _scaled(tensor: LazyTensor, columns: Float | None, rows: Float | None) -> LazyTensor:
    def load() -> npt.NDArray[np.float32]:
        values = np.array(tensor.load(), dtype=np.float32, order="C")  # a copy: the source may be a mapped file
        if columns is not None:
            values *= columns
        if rows is not None:
            values /= rows if values.ndim == 1 else rows[:, None]
        return values

    return LazyTensor(tensor.name, tensor.shape, tensor.dtype, load)


def _check(config: DecoderConfig, name: str, scale: Float) -> None:
    widths = {
        "qkv": config.hidden_size,
        "o": config.heads * config.head_dim,
        "gate_up": config.hidden_size,
        "down": config.intermediate_size,
    }
    head, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    if head != "layers" or not layer.isdecimal() or int(layer) >= config.layers or part not in widths:
        raise QuantizationError(f"a scale for {name!r}, which is no linear of a {config.layers}-layer decoder")
    if scale.shape != (widths[part],):
        raise QuantizationError(f"the scale of {name} is {list(scale.shape)}; the linear has {widths[part]} inputs")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise QuantizationError(f"the scale of {name} is not positive and finite throughout")
    if part == "o" and not (scale == for_queries(config, of_values(config, scale))).all():
        raise QuantizationError(f"the scale of {name} differs between query heads that share their values")
