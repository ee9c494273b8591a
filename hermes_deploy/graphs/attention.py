"""Grouped-query attention over a cache that is written in place, in both dialects. Pure.

`Steps` holds what all layers share: positions, rotary tables, and the mask (portable) or the
lengths (ort). x is `[B, S, hidden]`; caches are `[B, kv_heads, max_context, head_dim]`, with ort also in
int8: the kernel codes each token when it writes it, and every query meets what the codes say.

The portable form uses no `is_causal`, `nonpad_kv_seqlen` or attention past: TensorRT refuses or
ignores them. The mask makes -inf inside the graph, which TensorRT turns into block skipping. It
reshapes qkv into heads before it splits: split first, TensorRT would cut the fp16 weight instead
and store it a second time (docs/tensorrt.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder
from hermes_deploy.graphs.rope import rope_tables
from hermes_deploy.graphs.weights import NUMPY_DTYPES


@dataclass(frozen=True)
class PortableSteps:
    positions: ir.Value
    write_indices: ir.Value
    mask: ir.Value
    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class OrtSteps:
    seqlens: ir.Value
    total: ir.Value
    cos: ir.Value
    sin: ir.Value


Steps = PortableSteps | OrtSteps


def steps(b: GraphBuilder) -> Steps:
    """Declares the inputs that say where the tokens stand, and what is made of them once."""
    if not b.portable:
        seqlens = b.input("seqlens_k", ir.DataType.INT32, ["batch"])
        total = b.input("total_sequence_length", ir.DataType.INT32, [])
        return OrtSteps(seqlens, total, *rope_tables(b))
    positions = b.input("position_ids", ir.DataType.INT64, ["batch", "seq"])
    write_indices = b.input("write_indices", ir.DataType.INT64, ["batch"])
    return PortableSteps(positions, write_indices, _mask(b, positions), *rope_tables(b))


def attention(b: GraphBuilder, x: ir.Value, layer: int, shared: Steps) -> ir.Value:
    """Declares the layer's cache inputs and outputs; gives the block's output before the residual."""
    config, name, source = b.config, f"layers.{layer}", f"model.layers.{layer}.self_attn"
    query_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv = b.linear(
        f"{name}.qkv",
        x,
        config.hidden_size,
        [
            (f"{source}.q_proj.weight", query_size),
            (f"{source}.k_proj.weight", kv_size),
            (f"{source}.v_proj.weight", kv_size),
        ],
    )
    # ONNX Runtime takes a shorter cache than the graph was built for; TensorRT wants the length fixed
    length = b.spec.max_context if b.portable else "context"
    shape: list[int | str] = ["batch", config.kv_heads, length, config.head_dim]
    past_key = b.input(f"past_key_{layer}", b.cache_dtype, shape)
    past_value = b.input(f"past_value_{layer}", b.cache_dtype, shape)
    if isinstance(shared, PortableSteps):
        mixed, key, value = _portable(b, name, qkv, past_key, past_value, shared)
    else:
        mixed, key, value = _ort(b, layer, qkv, past_key, past_value, shared)
    b.output(key, f"present_key_{layer}", b.cache_dtype, shape)
    b.output(value, f"present_value_{layer}", b.cache_dtype, shape)
    return b.linear(f"{name}.o", mixed, query_size, [(f"{source}.o_proj.weight", config.hidden_size)])


def _ort(
    b: GraphBuilder, layer: int, qkv: ir.Value, past_key: ir.Value, past_value: ir.Value, shared: OrtSteps
) -> tuple[ir.Value, ir.Value, ir.Value]:
    config = b.config
    node = f"layers.{layer}.attention"
    scales: list[ir.Value | None] = []
    coded: dict[str, Any] = {}
    if b.spec.cache == "int8":
        # position_ids, attention_bias and head_sink stand before the scales and are not used
        scales = [None, None, None, b.cache_scale(layer, "key"), b.cache_scale(layer, "value")]
        coded = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    mixed, key, value = b.op_outputs(
        "GroupQueryAttention",
        node,
        (node, f"{node}.key", f"{node}.value"),
        qkv,
        None,
        None,
        past_key,
        past_value,
        shared.seqlens,
        shared.total,
        shared.cos,
        shared.sin,
        *scales,
        domain=MICROSOFT,
        num_heads=config.heads,
        kv_num_heads=config.kv_heads,
        do_rotary=1,
        scale=1.0 / math.sqrt(config.head_dim),
        local_window_size=config.sliding_window or -1,
        **coded,
    )
    return mixed, key, value


def _portable(
    b: GraphBuilder, name: str, qkv: ir.Value, past_key: ir.Value, past_value: ir.Value, shared: PortableSteps
) -> tuple[ir.Value, ir.Value, ir.Value]:
    config, node = b.config, f"{name}.attention"
    counts = [config.heads, config.kv_heads, config.kv_heads]
    shape = b.integers("attention.heads", [0, 0, sum(counts), config.head_dim])
    parts = b.op_outputs(
        "Split",
        f"{node}.split",
        [f"{node}.{part}.apart" for part in ("query", "key", "value")],
        b.op("Reshape", f"{node}.heads", qkv, shape),
        b.integers("attention.split", counts),
        axis=2,
    )

    def turn(part: str, apart: ir.Value) -> ir.Value:
        return b.op("Transpose", f"{node}.{part}", apart, perm=[0, 2, 1, 3])

    def rotate(part: str, x: ir.Value) -> ir.Value:
        return b.op("RotaryEmbedding", f"{node}.{part}.rotated", x, shared.cos, shared.sin, shared.positions)

    def write(part: str, past: ir.Value, x: ir.Value) -> ir.Value:
        return b.op("TensorScatter", f"{node}.{part}.cache", past, x, shared.write_indices, axis=2)

    query = rotate("query", turn("query", parts[0]))
    key = write("key", past_key, rotate("key", turn("key", parts[1])))
    value = write("value", past_value, turn("value", parts[2]))
    mixed = b.op("Attention", node, query, key, value, shared.mask, scale=1.0 / math.sqrt(config.head_dim))
    rows = b.op("Transpose", f"{node}.rows", mixed, perm=[0, 2, 1, 3])
    joined = b.integers("attention.join", [0, 0, config.heads * config.head_dim])
    return b.op("Reshape", f"{node}.joined", rows, joined), key, value


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
