"""What a graph is to be: the frozen facts, and the names of its inputs and outputs. Pure.

Takes a `DecoderConfig`, a dialect, an activation dtype and a context length; refuses what cannot be
expressed or, where its own words would not be understood, what the engine cannot run. Knows no
weights. Errors: GraphError.

Inputs, by dialect (B = batch rows, S = tokens a row, R = rows of logits wanted, M = max_context):

    both      input_ids         int64 [B, S]
              logits_positions  int64 [B, R]   which of the S tokens get logits, 0 <= p < S
              past_key_{i}, past_value_{i}     activation dtype, or int8 (ort) [B, kv_heads, M,
                                               head_dim]; with ort any length up to M
    portable  position_ids      int64 [B, S]   each in 0..M-1, padding too
              write_indices     int64 [B]      first cache position to write; write_indices + S <= M
    ort       seqlens_k         int32 [B]      tokens in the row after this step, minus one
              total_sequence_length int32 []   the greatest of seqlens_k, plus one

Outputs: logits float32 [B, R, vocab], present_key_{i}, present_value_{i} shaped as the past. The
caller binds the same memory as past and present: both dialects then write in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.errors import GraphError
from hermes_deploy.families import ARCHITECTURES
from hermes_deploy.targets import Activation, Cache, Dialect

Embedding = Literal["fp32", "fp16", "tied"]

ATTRIBUTE_LINEAR = "linear"
"""Key in a node's metadata_props: the node is the one MatMul of that linear, e.g. "layers.0.qkv"."""

ATTENTION_SCALES = {"key": 12, "value": 13}
"""Which inputs of a GroupQueryAttention hold the scales of an int8 cache, float32 [1, kv_heads, 1, head_dim]."""

TENSORRT_LEAST_HEADS = 4
"""TensorRT's decode attention takes no fewer query heads (tensorrt_rtx 1.7.1, docs/tensorrt.md)."""


@dataclass(frozen=True)
class GraphSpec:
    """`max_context`: tokens of cache in each row. `activation`: dtype of activations and weights.

    `kv`: dtype of the cache. None: as the activation; "int8", with the ort dialect in fp32 alone, needs
    scales when it is built (`build_decoder`).

    `embedding` says how the token table is stored: "fp32", "fp16" (half the bytes; rows are cast
    after they are looked up), or "tied": not at all, rows are read from the columns of
    `head.weight`. "tied" needs a tied head that stays unquantized, else it saves nothing and the
    look-up is slower. None: as the activation.
    """

    config: DecoderConfig
    dialect: Dialect
    activation: Activation
    max_context: int
    embedding: Embedding | None = None
    kv: Cache | None = None

    def __post_init__(self) -> None:
        config = self.config
        for value, allowed, what in (
            (config.architecture, ARCHITECTURES, "architecture"),
            (self.dialect, ("portable", "ort"), "dialect"),
            (self.activation, ("fp32", "fp16"), "activation"),
            (self.embedding, (None, "fp32", "fp16", "tied"), "embedding"),
            (self.kv, (None, self.activation, "int8"), "kv"),
        ):
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise GraphError(f"{what} is {value!r}; this version builds: {choices}.")
        if self.cache == "int8" and (self.dialect, self.activation) != ("ort", "fp32"):
            raise GraphError(
                f"kv is 'int8' in a graph of dialect {self.dialect} in {self.activation}; only ONNX Runtime's CPU "
                "kernels take it, in dialect ort in fp32. Build with --target cpu, or a recipe whose kv is activation."
            )
        if config.kv_heads < 1 or config.heads % config.kv_heads:
            raise GraphError(f"{config.heads} heads cannot share {config.kv_heads} key/value heads evenly.")
        # portable fp16 is what TensorRT targets take; portable fp32 is run by ONNX Runtime only
        if self.dialect == "portable" and self.activation == "fp16" and config.heads < TENSORRT_LEAST_HEADS:
            raise GraphError(
                f"the model has {config.heads} query heads; TensorRT has no decode attention for fewer than "
                f"{TENSORRT_LEAST_HEADS}, so it can be built for no sm.. target. Build it with --target cpu."
            )
        if config.head_dim % 16:
            raise GraphError(f"head_dim is {config.head_dim}; rotary kernels need a multiple of 16.")
        if self.max_context < 2:
            raise GraphError(f"max_context is {self.max_context}; it must be at least 2 tokens.")
        if self.embedding == "tied" and not config.tied_head:
            raise GraphError('embedding "tied" needs a checkpoint with a tied head; use "fp32" or "fp16".')

    @property
    def stored_embedding(self) -> Embedding:
        return self.embedding or self.activation

    @property
    def cache(self) -> Cache:
        return self.kv or self.activation

    @property
    def metadata(self) -> dict[str, str]:
        """The facts that a reader of the file needs; `sliding_window` is "" where there is none."""
        config = self.config
        facts = {
            "dialect": self.dialect,
            "activation": self.activation,
            "embedding": self.stored_embedding,
            "kv": self.cache,
            "max_context": self.max_context,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "layers": config.layers,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "sliding_window": config.sliding_window or "",
        }
        return {key: str(value) for key, value in facts.items()}


def cache_names(layers: int) -> list[tuple[str, str]]:
    """(past, present) names of every cache, in the order of the graph's inputs and outputs."""
    return [(f"past_{kind}_{layer}", f"present_{kind}_{layer}") for layer in range(layers) for kind in ("key", "value")]


def linear_names(layers: int) -> list[str]:
    """Names of every linear, in the order of the graph; the weight is `{name}.weight` [K, N]."""
    blocks = [f"layers.{i}.{part}" for i in range(layers) for part in ("qkv", "o", "gate_up", "down")]
    return [*blocks, "head"]
