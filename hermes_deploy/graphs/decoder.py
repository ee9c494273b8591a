"""The whole decoder: embedding, blocks, head, as one `onnx_ir.Model`. Pure; loads no weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.graphs.attention import attention
from hermes_deploy.graphs.builder import MICROSOFT, GraphBuilder
from hermes_deploy.graphs.embedding import embed
from hermes_deploy.graphs.head import head
from hermes_deploy.graphs.mlp import mlp
from hermes_deploy.graphs.norm import add_norm, norm
from hermes_deploy.graphs.spec import GraphSpec
from hermes_deploy.graphs.steps import steps

OPSET = 24
IR_VERSION = 12


def build_decoder(
    spec: GraphSpec,
    tensors: Mapping[str, LazyTensor],
    cache_scales: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> ir.Model:
    """The graph of `spec` over the checkpoint's `tensors` (Hugging Face names, linears `[out, in]`).

    Weights become lazy initializers that are read while the model is saved. Every linear is one
    MatMul whose metadata_props["linear"] names it (`graphs.linear_names`). Two calls give equal
    models. `cache_scales` [kv_heads, head_dim] of "layers.0.key" and "layers.0.value", for a `kv` of int8.
    Raises GraphError for a tensor or scale that is missing or of another shape.
    """
    b = GraphBuilder(spec, tensors, cache_scales)
    layers = spec.config.layers
    input_ids = b.input("input_ids", ir.DataType.INT64, ["batch", "seq"])
    shared = steps(b, input_ids)
    residual = embed(b, input_ids)
    x = norm(b, residual, "layers.0.input_norm", "model.layers.0.input_layernorm.weight")
    for layer in range(layers):
        mixed = attention(b, x, layer, shared)
        x, residual = add_norm(
            b,
            mixed,
            residual,
            f"layers.{layer}.mlp_norm",
            f"model.layers.{layer}.post_attention_layernorm.weight",
        )
        down = mlp(b, x, layer)
        after, source = (
            (f"layers.{layer + 1}.input_norm", f"model.layers.{layer + 1}.input_layernorm.weight")
            if layer + 1 < layers
            else ("norm", "model.norm.weight")
        )
        x, residual = add_norm(b, down, residual, after, source)
    head(b, x)
    return _model(b)


def _model(b: GraphBuilder) -> ir.Model:
    imports = {"": OPSET} if b.portable else {"": OPSET, MICROSOFT: 1}
    logits_first = [b.outputs[-1], *b.outputs[:-1]]
    graph = ir.Graph(
        b.inputs,
        logits_first,
        nodes=b.nodes,
        initializers=list(b.initializers.values()),
        opset_imports=imports,
        name="decoder",
    )
    return ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="hermes-deploy",
        metadata_props=b.spec.metadata,
    )
