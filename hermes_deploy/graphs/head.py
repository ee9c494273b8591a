"""Logits of the wanted tokens only. Pure.

hidden `[B, S, hidden]` and logits_positions `[B, R]` to the output `logits`, float32 `[B, R, vocab]`.
"""

from __future__ import annotations

import onnx_ir as ir

from hermes_deploy.checkpoints.layout import EMBEDDING, HEAD
from hermes_deploy.graphs.builder import GraphBuilder


def head(b: GraphBuilder, hidden: ir.Value) -> None:
    config = b.config
    wanted = b.input("logits_positions", ir.DataType.INT64, ["batch", "rows"])
    indices = b.op("Unsqueeze", "head.indices", wanted, b.integers("head.axes", [-1]))
    rows = b.op("GatherND", "head.rows", hidden, indices, batch_dims=1)
    source = EMBEDDING if config.tied_head else HEAD
    logits = b.linear("head", rows, config.hidden_size, [(source, config.vocab_size)])
    if b.spec.activation != "fp32":
        logits = b.op("Cast", "head.cast", logits, to=int(ir.DataType.FLOAT))
    b.output(logits, "logits", ir.DataType.FLOAT, ["batch", "rows", config.vocab_size])
