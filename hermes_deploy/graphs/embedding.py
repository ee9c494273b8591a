"""Token ids `[B, S]` to hidden states `[B, S, hidden]`. Pure."""

from __future__ import annotations

import onnx_ir as ir

from hermes_deploy.checkpoints.layout import EMBEDDING
from hermes_deploy.graphs.builder import GraphBuilder
from hermes_deploy.graphs.weights import linear_weight, plain_weight


def embed(b: GraphBuilder, input_ids: ir.Value) -> ir.Value:
    config, stored = b.config, b.spec.stored_embedding
    source = b.source(EMBEDDING, (config.vocab_size, config.hidden_size))
    if stored == "tied":
        # Rows of the table are columns of the head: one stored matrix. A Transpose of the table
        # before the head would hide the weight from the engine instead.
        table = b.initializer(linear_weight("head.weight", [source], b.spec.activation))
        columns = b.op("Gather", "embedding.columns", table, input_ids, axis=1)
        return b.op("Transpose", "embedding", columns, perm=[1, 2, 0])
    table = b.initializer(plain_weight("embedding.weight", source, stored))
    if stored == b.spec.activation:
        return b.op("Gather", "embedding", table, input_ids, axis=0)
    rows = b.op("Gather", "embedding.stored", table, input_ids, axis=0)
    return b.op("Cast", "embedding", rows, to=int(b.dtype))
