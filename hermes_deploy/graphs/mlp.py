"""The gated block: down(silu(gate(x)) * up(x)), gate and up in one matrix. Pure."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder


def mlp(b: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    config, name, source = b.config, f"layers.{layer}", f"model.layers.{layer}.mlp"
    wide, hidden = config.intermediate_size, config.hidden_size
    gate_up = b.linear(
        f"{name}.gate_up", x, hidden, [(f"{source}.gate_proj.weight", wide), (f"{source}.up_proj.weight", wide)]
    )
    gate, up = _halves(b, f"{name}.mlp", gate_up, wide)
    product = b.op("Mul", f"{name}.mlp.product", _silu(b, f"{name}.mlp.silu", gate), up)
    return b.linear(f"{name}.down", product, wide, [(f"{source}.down_proj.weight", hidden)])


def _halves(b: GraphBuilder, name: str, x: ir.Value, wide: int) -> tuple[ir.Value, ir.Value]:
    if not b.portable:
        sizes = b.integers("mlp.split", [wide, wide])
        gate, up = b.op_outputs("Split", f"{name}.split", (f"{name}.gate", f"{name}.up"), x, sizes, axis=-1)
        return gate, up
    # with a Split of the last axis TensorRT would cut the fp16 weight instead and store it a second time
    pair = b.op("Reshape", f"{name}.pair", x, b.integers("mlp.pair", [0, 0, 2, wide]))

    def half(part: str, index: int) -> ir.Value:
        place = b.initializer(ir.tensor(np.array(index, dtype=np.int64), name=f"mlp.{part}"))
        return b.op("Gather", f"{name}.{part}", pair, place, axis=2)

    return half("gate", 0), half("up", 1)


def _silu(b: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    if not b.portable:
        return b.op("QuickGelu", name, x, domain=MICROSOFT, alpha=1.0)
    return b.op("Mul", name, x, b.op("Sigmoid", f"{name}.sigmoid", x))
