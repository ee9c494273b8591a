"""Which tensors a decoder consists of, and the check that a file brought exactly those.

Takes a `DecoderConfig` and what a reader found; knows no file format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Rotary tables that old exporters stored; they follow from rope_theta.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that `graphs/` reads; a tied head is not a tensor of its own."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (queries, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, queries),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied_head:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def select_tensors(found: Mapping[str, LazyTensor], config: DecoderConfig, where: str) -> dict[str, LazyTensor]:
    """The tensors of the decoder, in its order. Raises CheckpointError for a missing, misshapen or extra one."""
    shapes = expected_shapes(config)
    missing = [name for name in shapes if name not in found]
    if missing:
        raise CheckpointError(
            f"{where}: {_some(missing)} missing from the weights of a {config.layers}-layer {config.architecture}. "
            "The checkpoint is incomplete; get it again."
        )
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(found[name].shape)}, the configuration asks for {list(shape)}"
            )
    redundant = {HEAD} if config.tied_head else set()
    extra = [name for name in found if name not in shapes and name not in redundant and not _DERIVED.fullmatch(name)]
    if extra:
        raise CheckpointError(
            f"{where}: {_some(extra)} not part of a {config.architecture} without biases; "
            "this checkpoint computes something that is not supported"
        )
    if config.tied_head and HEAD in found:
        _check_tied(found, where)
    return {name: found[name] for name in shapes}


def _check_tied(found: Mapping[str, LazyTensor], where: str) -> None:
    head, embedding = found[HEAD], found[EMBEDDING]
    if head.shape != embedding.shape or not (head.load() == embedding.load()).all():
        raise CheckpointError(
            f"{where}: tie_word_embeddings is true, yet {HEAD} differs from {EMBEDDING}; "
            "set tie_word_embeddings to false if the separate head is meant"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return (
        f"{shown} and {len(names) - 3} more are" if len(names) > 3 else f"{shown} {'is' if len(names) == 1 else 'are'}"
    )
