"""Where the tokens of a step stand, for all layers at once: positions, rotary tables, mask or lengths. Pure.

Declares the inputs of its dialect. The mask makes -inf inside the graph, which TensorRT turns into
block skipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hermes_deploy.graphs.builder import GraphBuilder
from hermes_deploy.graphs.rope import rope_tables
from hermes_deploy.graphs.weights import NUMPY_DTYPES

MANY = 8
"""Tokens a row from which an int8 cache is read as floats: see `grouped_query`."""


@dataclass(frozen=True)
class PortableSteps:
    positions: ir.Value
    write_indices: ir.Value
    mask: ir.Value
    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class OrtSteps:
    """`tokens` int64 [1]: tokens a row; `many` bool []: are they MANY or more. None but for an int8 cache."""

    seqlens: ir.Value
    total: ir.Value
    cos: ir.Value
    sin: ir.Value
    tokens: ir.Value | None = None
    many: ir.Value | None = None


Steps = PortableSteps | OrtSteps


def steps(b: GraphBuilder, input_ids: ir.Value) -> Steps:
    """Declares the inputs that say where the tokens stand, and what is made of them once."""
    if not b.portable:
        seqlens = b.input("seqlens_k", ir.DataType.INT32, ["batch"])
        total = b.input("total_sequence_length", ir.DataType.INT32, [])
        if b.spec.cache != "int8":
            return OrtSteps(seqlens, total, *rope_tables(b))
        tokens = b.op("Shape", "attention.tokens", input_ids, start=1, end=2)
        enough = b.op("GreaterOrEqual", "attention.enough", tokens, b.integers("attention.least", [MANY]))
        return OrtSteps(seqlens, total, *rope_tables(b), tokens, b.op("Squeeze", "attention.many", enough))
    positions = b.input("position_ids", ir.DataType.INT64, ["batch", "seq"])
    write_indices = b.input("write_indices", ir.DataType.INT64, ["batch"])
    return PortableSteps(positions, write_indices, _mask(b, positions), *rope_tables(b))


def _mask(b: GraphBuilder, positions: ir.Value) -> ir.Value:
    """`[B, 1, S, max_context]`: 0 where the token may look, -inf elsewhere; one for all layers."""
    dtype = NUMPY_DTYPES[b.spec.activation]
    cache = np.arange(b.spec.max_context, dtype=np.int64).reshape(1, 1, 1, -1)
    cache_positions = b.initializer(ir.tensor(cache, name="mask.cache_positions"))
    own = b.op("Unsqueeze", "mask.own", positions, b.integers("mask.axes", [1, 3]))
    seen = b.op("LessOrEqual", "mask.causal", cache_positions, own)
    if b.config.sliding_window is not None:
        oldest = b.op("Sub", "mask.oldest", own, b.integers("mask.window", [b.config.sliding_window]))
        near = b.op("Greater", "mask.near", cache_positions, oldest)
        seen = b.op("And", "mask.seen", seen, near)
    zero = b.initializer(ir.tensor(np.zeros((), dtype=dtype), name="mask.zero"))
    hidden = b.initializer(ir.tensor(np.full((), -np.inf, dtype=dtype), name="mask.hidden"))
    return b.op("Where", "mask", seen, zero, hidden)
