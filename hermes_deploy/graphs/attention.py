"""Grouped-query attention over a cache that is written in place, in both dialects. Pure.

`steps` has what all layers share, `grouped_query` the form of the ort dialect. x is `[B, S, hidden]`;
caches are `[B, kv_heads, max_context, head_dim]`.

The portable form uses no `is_causal`, `nonpad_kv_seqlen` or attention past: TensorRT refuses or
ignores them. It reshapes qkv into heads before it splits: split first, TensorRT would cut the fp16
weight instead and store it a second time (docs/tensorrt.md).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from hermes_deploy.graphs.builder import GraphBuilder
from hermes_deploy.graphs.grouped_query import grouped_query
from hermes_deploy.graphs.steps import PortableSteps, Steps


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
        mixed, key, value = grouped_query(b, layer, qkv, (past_key, past_value), shared)
    b.output(key, f"present_key_{layer}", b.cache_dtype, shape)
    b.output(value, f"present_value_{layer}", b.cache_dtype, shape)
    return b.linear(f"{name}.o", mixed, query_size, [(f"{source}.o_proj.weight", config.hidden_size)])


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
