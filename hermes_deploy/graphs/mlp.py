"""The gated block: down(silu(gate(x)) * up(x)), gate and up in one matrix. Pure."""

from __future__ import annotations

import onnx_ir as ir

from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder


def mlp(b: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    config, name, source = b.config, f"layers.{layer}", f"model.layers.{layer}.mlp"
    wide, hidden = config.intermediate_size, config.hidden_size
    gate_up = b.linear(
        f"{name}.gate_up", x, hidden, [(f"{source}.gate_proj.weight", wide), (f"{source}.up_proj.weight", wide)]
    )
    gate, up = b.op_outputs(
        "Split",
        f"{name}.mlp.split",
        (f"{name}.mlp.gate", f"{name}.mlp.up"),
        gate_up,
        b.integers("mlp.split", [wide, wide]),
        axis=-1,
    )
    product = b.op("Mul", f"{name}.mlp.product", _silu(b, f"{name}.mlp.silu", gate), up)
    return b.linear(f"{name}.down", product, wide, [(f"{source}.down_proj.weight", hidden)])


def _silu(b: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    if not b.portable:
        return b.op("QuickGelu", name, x, domain=MICROSOFT, alpha=1.0)
    return b.op("Mul", name, x, b.op("Sigmoid", f"{name}.sigmoid", x))
