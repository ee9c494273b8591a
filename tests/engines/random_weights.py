"""Random weights of a decoder by their Hugging Face names, without a checkpoint on disk."""

from __future__ import annotations

import numpy as np

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor


def random_tensors(config: DecoderConfig) -> dict[str, LazyTensor]:
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
    }
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (queries, hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, queries),
            f"{layer}.mlp.gate_proj.weight": (wide, hidden),
            f"{layer}.mlp.up_proj.weight": (wide, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, wide),
        }
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        array = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * 0.05
        values = array.astype(np.float32)
        tensors[name] = LazyTensor(name, shape, "F32", lambda values=values: values)
    return tensors
