"""Attention of the ort dialect: GroupQueryAttention, over a cache of activations or in int8. Pure.

In int8 each token is coded when it is written (round to even, -128..127, one scale a channel), and every
query meets what the codes say. There are two ways to the same codes and, but for the last bits, the same
answers; the graph takes one at each step:

    few tokens    the kernel reads and writes codes itself. It takes a code apart once for every query that
                  meets it: with one token less to read than floats, with 256 three times the time
    many tokens   nodes of their own make the codes and write them (TensorScatter, in the cache's memory);
                  what the cache says is taken apart once, and the kernel computes with floats

One thread, heads of SmolLM2-135M, 256 tokens after 768, one attention: floats 8.1 ms; codes 24.8 ms the
first way, 8.7 ms the second. Equal at 8 tokens (`steps.MANY`). To choose takes 2 to 3 us a layer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder
from hermes_deploy.graphs.steps import OrtSteps

Caches = tuple[ir.Value, ir.Value]
"""Past keys and values, [B, kv_heads, context, head_dim]."""
Three = tuple[ir.Value, ir.Value, ir.Value]


def grouped_query(b: GraphBuilder, layer: int, qkv: ir.Value, caches: Caches, shared: OrtSteps) -> Three:
    """Takes `qkv` [B, S, (heads + 2 kv_heads) * head_dim]; gives what was mixed [B, S, heads * head_dim], present
    keys and present values, shaped as the past."""
    node = f"layers.{layer}.attention"
    if b.spec.cache != "int8":
        return _whole(b, node, qkv, caches, shared)
    scales = b.cache_scale(layer, "key"), b.cache_scale(layer, "value")
    mixed, key, value = b.op_outputs(
        "If",
        node,
        (node, f"{node}.key", f"{node}.value"),
        shared.many,
        then_branch=b.branch(f"{node}.many", lambda: _many(b, f"{node}.many", qkv, caches, scales, shared)),
        else_branch=b.branch(f"{node}.few", lambda: _whole(b, f"{node}.few", qkv, caches, shared, scales)),
    )
    return mixed, key, value


def _whole(
    b: GraphBuilder, node: str, qkv: ir.Value, caches: Caches, shared: OrtSteps, scales: Caches | None = None
) -> Three:
    """All in one kernel, rotation too; with `scales` it keeps codes."""
    coded: dict[str, Any] = {}
    if scales is not None:
        coded = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    mixed, key, value = b.op_outputs(
        "GroupQueryAttention",
        node,
        (node, f"{node}.key", f"{node}.value"),
        qkv,
        None,
        None,
        *caches,
        shared.seqlens,
        shared.total,
        shared.cos,
        shared.sin,
        # position_ids, attention_bias and head_sink stand before the scales and are not used
        *(() if scales is None else (None, None, None, *scales)),
        domain=MICROSOFT,
        **_attributes(b.config, do_rotary=1),
        **coded,
    )
    return mixed, key, value


def _many(b: GraphBuilder, node: str, qkv: ir.Value, caches: Caches, scales: Caches, shared: OrtSteps) -> Three:
    config = b.config
    widths = [count * config.head_dim for count in (config.heads, config.kv_heads, config.kv_heads)]
    parts = b.op_outputs(
        "Split",
        f"{node}.split",
        [f"{node}.{part}.apart" for part in ("query", "key", "value")],
        qkv,
        b.integers("attention.widths", widths),
        axis=2,
    )
    first, positions, before = _places(b, node, shared)

    def rotate(part: str, x: ir.Value, heads: int) -> ir.Value:
        return b.op("RotaryEmbedding", f"{node}.{part}.rotated", x, shared.cos, shared.sin, positions, num_heads=heads)

    rotated = rotate("query", parts[0], config.heads), rotate("key", parts[1], config.kv_heads)
    key, old_keys, keys = _kept(b, f"{node}.key", rotated[1], caches[0], scales[0], first, before)
    value, old_values, values = _kept(b, f"{node}.value", parts[2], caches[1], scales[1], first, before)
    mixed, *_ = b.op_outputs(
        "GroupQueryAttention",
        node,
        (node, f"{node}.key.joined", f"{node}.value.joined"),
        rotated[0],
        key,
        value,
        old_keys,
        old_values,
        shared.seqlens,
        shared.total,
        domain=MICROSOFT,
        **_attributes(config, do_rotary=0),
    )
    return mixed, keys, values


def _places(b: GraphBuilder, node: str, shared: OrtSteps) -> Three:
    """First position of each row [B], positions of all tokens [B, S], and tokens before the longest row's [1]."""
    assert shared.tokens is not None
    one = b.integers("attention.one", [1])

    def wide(name: str, x: ir.Value) -> ir.Value:
        return b.op("Cast", f"{node}.{name}", x, to=ir.DataType.INT64.value)

    lengths = b.op("Add", f"{node}.lengths", wide("last", shared.seqlens), one)
    first = b.op("Sub", f"{node}.first", lengths, shared.tokens)
    count = b.op("Squeeze", f"{node}.count", shared.tokens)
    zero, step = b.scalar("attention.zero", np.int64(0)), b.scalar("attention.step", np.int64(1))
    after = b.op("Range", f"{node}.after", zero, count, step)
    positions = b.op("Add", f"{node}.positions", b.op("Unsqueeze", f"{node}.rows", first, one), after)
    total = b.op("Reshape", f"{node}.total", wide("longest", shared.total), one)
    return first, positions, b.op("Sub", f"{node}.before", total, shared.tokens)


def _kept(
    b: GraphBuilder, name: str, x: ir.Value, past: ir.Value, scale: ir.Value, first: ir.Value, before: ir.Value
) -> Three:
    """What the codes of x [B, S, kv_heads * head_dim] say, what those before it say [B, kv_heads, before,
    head_dim], and the cache with the codes of x."""
    kv_heads, head_dim = b.config.kv_heads, b.config.head_dim
    row = b.op("Reshape", f"{name}.scale", scale, b.integers("attention.row", [kv_heads * head_dim]))
    # divided first: with a scale a channel, QuantizeLinear takes fifty times as long
    steps = b.op("Div", f"{name}.steps", x, row)
    unit, zero = b.scalar("attention.unit", np.float32(1)), b.scalar("attention.zero_code", np.int8(0))
    codes = b.op("QuantizeLinear", f"{name}.codes", steps, unit, zero)
    said = b.op("Mul", f"{name}.said", _floats(b, f"{name}.floats", codes), row)
    heads = b.op("Reshape", f"{name}.heads", codes, b.integers("attention.heads", [0, 0, kv_heads, head_dim]))
    turned = b.op("Transpose", f"{name}.turned", heads, perm=[0, 2, 1, 3])
    cache = b.op("TensorScatter", f"{name}.cache", past, turned, first, axis=2)
    start, axis = b.integers("attention.start", [0]), b.integers("attention.axis", [2])
    old = b.op("Slice", f"{name}.old", past, start, before, axis)
    return said, b.op("Mul", f"{name}.old.said", _floats(b, f"{name}.old.floats", old), scale), cache


def _floats(b: GraphBuilder, name: str, codes: ir.Value) -> ir.Value:
    return b.op("Cast", name, codes, to=b.dtype.value)


def _attributes(config: DecoderConfig, do_rotary: int) -> dict[str, Any]:
    return {
        "num_heads": config.heads,
        "kv_num_heads": config.kv_heads,
        "do_rotary": do_rotary,
        "scale": 1.0 / math.sqrt(config.head_dim),
        "local_window_size": config.sliding_window or -1,
    }
