"""How far the stored weights are from the checkpoint's, where it is worst.

A mean over a whole model hides one damaged attention head; so the error is taken over groups of
head_dim outputs of every linear (and of head_dim inputs of `o`, which is where its heads are), and
the worst group counts. Reads the saved graph and the checkpoint, one matrix at a time each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import GateError
from hermes_deploy.graphs import linear_names
from hermes_deploy.quantization import head_weight
from hermes_deploy.verification.stored import rows_of, vector_of
from hermes_deploy.verification.tensors import SavedLinear, saved_linears, saved_vectors

_SMALL = 0.1
"""A group weaker than this share of its matrix's typical group is held against that share instead:
an attention head of almost no weight may share blocks with a strong one, and does no harm."""


_ROWS = 1024
"""Rows of the embedding that are compared at once."""


@dataclass(frozen=True)
class TensorError:
    """`worst`: ||stored - source|| / ||source|| of the worst group; `where` names it."""

    worst: float
    where: str


def tensor_error(onnx_path: Path, config: DecoderConfig, tensors: Mapping[str, LazyTensor]) -> TensorError:
    """Compares every linear, norm and the embedding of the saved graph with the checkpoint.

    Raises GateError when a linear is missing from the graph or has another shape.
    """
    worst = TensorError(0.0, "")
    missing = linear_names(config.layers)
    for linear in saved_linears(onnx_path):
        if linear.name not in missing:
            raise GateError(f"{onnx_path}: linear {linear.name} is not one of this model's")
        missing.remove(linear.name)
        worst = max(worst, _linear_error(linear, config, tensors), key=_severity)
    if missing:
        raise GateError(f"{onnx_path}: no linear is tagged {missing[0]}; the graph is not complete")
    for name, tensor in saved_vectors(onnx_path):
        worst = max(worst, _vector_error(name, tensor, config, tensors), key=_severity)
    return worst


def _vector_error(
    name: str, tensor: ir.TensorProtocol, config: DecoderConfig, tensors: Mapping[str, LazyTensor]
) -> TensorError:
    """Of an embedding each row is a group, of a norm each head_dim values."""
    source = tensors[_source_of_vector(name)].float32()
    if source.ndim == 1:
        return _worst_group(name, (vector_of(tensor) - source) ** 2, source**2, config.head_dim)
    error, power = np.empty(len(source), np.float32), np.empty(len(source), np.float32)
    for top in range(0, len(source), _ROWS):
        theirs = source[top : top + _ROWS]
        apart = rows_of(tensor, top, top + _ROWS) - theirs
        error[top : top + _ROWS] = np.einsum("nk,nk->n", apart, apart)
        power[top : top + _ROWS] = np.einsum("nk,nk->n", theirs, theirs)
    return _worst_group(name, error, power, 1)


def _severity(error: TensorError) -> float:
    return float("inf") if np.isnan(error.worst) else error.worst


def _linear_error(linear: SavedLinear, config: DecoderConfig, tensors: Mapping[str, LazyTensor]) -> TensorError:
    sources = [tensor.float32() for tensor in _sources_of_linear(linear.name, config, tensors)]
    rows, columns = linear.shape
    if sum(len(source) for source in sources) != columns or any(source.shape[1] != rows for source in sources):
        raise GateError(
            f"linear {linear.name} is {rows} x {columns} in the graph, "
            f"{' + '.join('x'.join(map(str, source.shape)) for source in sources)} in the checkpoint"
        )
    by_column, power_by_column = np.zeros(columns, np.float64), np.zeros(columns, np.float64)
    by_row, power_by_row = np.empty(rows, np.float64), np.empty(rows, np.float64)
    for top, stored in linear.slabs():
        wanted = np.concatenate([source[:, top : top + len(stored)] for source in sources]).T
        stored -= wanted
        by_column += np.einsum("kn,kn->n", stored, stored)
        power_by_column += np.einsum("kn,kn->n", wanted, wanted)
        by_row[top : top + len(stored)] = np.einsum("kn,kn->k", stored, stored)
        power_by_row[top : top + len(stored)] = np.einsum("kn,kn->k", wanted, wanted)
    worst = TensorError(0.0, "")
    left = 0
    for source in sources:
        right = left + len(source)
        found = _worst_group(
            f"{linear.name}, outputs from {left}", by_column[left:right], power_by_column[left:right], config.head_dim
        )
        worst = max(worst, found, key=_severity)
        left = right
    if linear.name.endswith(".o"):
        found = _worst_group(f"{linear.name}, inputs", by_row, power_by_row, config.head_dim)
        worst = max(worst, found, key=_severity)
    return worst


def _worst_group(what: str, error: npt.NDArray[Any], power: npt.NDArray[Any], width: int) -> TensorError:
    starts = np.arange(0, len(error), width)
    errors, powers = np.add.reduceat(error, starts), np.add.reduceat(power, starts)
    floor = _SMALL**2 * float(powers.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(errors == 0, 0.0, np.sqrt(errors / np.maximum(powers, floor)))
    relative = np.where(np.isnan(relative), np.inf, relative)
    at = int(relative.argmax())
    return TensorError(float(relative[at]), f"{what}, group {at}")


def _sources_of_linear(name: str, config: DecoderConfig, tensors: Mapping[str, LazyTensor]) -> list[LazyTensor]:
    if name == "head":
        return [head_weight(config, tensors)]
    _, layer, part = name.split(".")
    names = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }[part]
    return [tensors[f"model.layers.{layer}.{each}.weight"] for each in names]


def _source_of_vector(name: str) -> str:
    if name in ("embedding.weight", "norm.weight"):
        return {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    kind = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}[part]
    return f"model.layers.{layer}.{kind}.weight"
