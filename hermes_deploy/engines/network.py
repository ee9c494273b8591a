"""What a parsed network really does: consumed inputs, linears, caches updated in place.

Takes TensorRT's INetworkDefinition, gives plain values. Walking the network instead of trusting the
parser's return code is the point: the parser ignores inputs with a warning, or without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hermes_deploy.engines.layers import Linear
from hermes_deploy.engines.sidecar import TensorEntry

_DTYPES = {"HALF": "fp16", "FLOAT": "fp32", "BF16": "bf16"}
_MAKES_CODES = ("QUANTIZE", "DYNAMIC_QUANTIZE")
_PASSES_WEIGHTS = ("SHUFFLE", "CAST", "IDENTITY")


@dataclass(frozen=True)
class NetworkFacts:
    """`head`: the linear that makes the logits. `aliases`: output -> cache input updated in place."""

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    unconsumed: tuple[str, ...]
    linears: tuple[Linear, ...]
    head: Linear | None
    attentions: int
    aliases: dict[str, str]


def read_network(network: Any, names: Mapping[str, Sequence[int | str]], logits: str = "logits") -> NetworkFacts:
    """Facts of a network that was parsed without error.

    `names`: output -> shape with named dimensions; the parser keeps those names for inputs only.
    `logits` is the output of the head.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made_by = {
        layer.get_output(j).name: layer for layer in layers for j in range(layer.num_outputs) if layer.get_output(j)
    }
    inputs = tuple(_entry(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_entry(network.get_output(i), names) for i in range(network.num_outputs))
    linears = {layer.name: linear for layer in layers if (linear := _linear(layer, made_by))}
    used = _reached([o.name for o in outputs], made_by)
    return NetworkFacts(
        inputs,
        outputs,
        tuple(i.name for i in inputs if i.name not in used),
        tuple(linears.values()),
        _head(logits, made_by, linears),
        sum(layer.type.name == "ATTENTION_INPUT" for layer in layers),
        {layer.get_output(0).name: layer.get_input(0).name for layer in layers if layer.type.name == "KV_CACHE_UPDATE"},
    )


def _operands(layer: Any) -> list[str]:
    found = (layer.get_input(i) for i in range(layer.num_inputs))
    return [tensor.name for tensor in found if tensor is not None]


def _reached(names: list[str], made_by: dict[str, Any]) -> set[str]:
    """Every tensor that the tensors of those names depend on."""
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in made_by:
            todo += _operands(made_by[name])
    return seen


def _linear(layer: Any, made_by: dict[str, Any]) -> Linear | None:
    """The weights of a matrix product with a constant, or None for one of two activations."""
    if layer.type.name != "MATRIX_MULTIPLY":
        return None
    operands = _operands(layer)
    for index, operand in enumerate(operands):
        constant, scales = _constant_behind(operand, made_by)
        if constant is not None:
            tensor = constant.get_output(0)
            codes = _codes_behind(operands[1 - index], made_by)
            return Linear(layer.metadata, _dtype(tensor), math.prod(tensor.shape), codes, scales)
    return None


def _constant_behind(name: str, made_by: dict[str, Any]) -> tuple[Any | None, int]:
    """The constant that only shape changes, casts and one dequantization stand in front of, and how many
    scales the latter has."""
    layer, scales = made_by.get(name), 0
    while layer is not None and layer.type.name in (*_PASSES_WEIGHTS, "DEQUANTIZE"):
        if layer.type.name == "DEQUANTIZE":
            scales = math.prod(layer.get_input(1).shape)
        layer = made_by.get(layer.get_input(0).name)
    return (layer, scales) if layer is not None and layer.type.name == "CONSTANT" else (None, 0)


def _codes_behind(name: str, made_by: dict[str, Any]) -> str:
    """dtype of the codes that an activation is dequantized from right before, "" where it is not."""
    layer = made_by.get(name)
    while layer is not None and layer.type.name in _PASSES_WEIGHTS:
        layer = made_by.get(layer.get_input(0).name)
    if layer is None or layer.type.name != "DEQUANTIZE":
        return ""
    codes = layer.get_input(0)
    source = made_by.get(codes.name)
    return _dtype(codes) if source is not None and source.type.name in _MAKES_CODES else ""


def _head(logits: str, made_by: dict[str, Any], linears: dict[str, Linear]) -> Linear | None:
    layer = made_by.get(logits)
    while layer is not None and layer.name not in linears:
        first = _operands(layer)
        layer = made_by.get(first[0]) if first else None
    return linears[layer.name] if layer is not None else None


def _entry(tensor: Any, names: Mapping[str, Sequence[int | str]] = MappingProxyType({})) -> TensorEntry:
    known = names.get(tensor.name) or [tensor.get_dimension_name(i) for i in range(len(tensor.shape))]
    shape = [size if size >= 0 else known[i] or "?" for i, size in enumerate(tensor.shape)]
    return TensorEntry(name=tensor.name, dtype=_dtype(tensor), shape=shape)


def _dtype(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return _DTYPES.get(name, name.lower())
