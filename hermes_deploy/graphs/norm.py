"""Root mean square norm, alone or together with the residual addition before it. Pure.

Statistics are fp32 in both dialects, whatever the activation dtype.
"""

from __future__ import annotations

import onnx_ir as ir

from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder


def norm(b: GraphBuilder, x: ir.Value, name: str, source: str) -> ir.Value:
    """x `[B, S, hidden]` normed with the weight `{name}.weight`."""
    scale = b.vector(f"{name}.weight", source, b.config.hidden_size)
    return b.op("RMSNormalization", name, x, scale, axis=-1, epsilon=b.config.rms_norm_eps, stash_type=1)


def add_norm(b: GraphBuilder, x: ir.Value, residual: ir.Value, name: str, source: str) -> tuple[ir.Value, ir.Value]:
    """(norm(x + residual), x + residual)."""
    if b.portable:
        total = b.op("Add", f"{name}.residual", x, residual)
        return norm(b, total, name, source), total
    scale = b.vector(f"{name}.weight", source, b.config.hidden_size)
    normed, _, _, total = b.op_outputs(
        "SkipSimplifiedLayerNormalization",
        name,
        (name, "", "", f"{name}.residual"),
        x,
        residual,
        scale,
        domain=MICROSOFT,
        epsilon=b.config.rms_norm_eps,
    )
    return normed, total
