"""The models that the driver runs, and what transformers answers to fixed texts. Needs torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints import open_checkpoint
from tests.graphs.reference import Reference, make_reference

ROWS = 4


def tiny(folder: Path, window: int | None) -> Reference:
    return make_reference(folder, sliding_window=window)


def demo(gguf: Path) -> Reference:
    """transformers' Llama given the tensors of the checkpoint, nothing of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    checkpoint = open_checkpoint(str(gguf))
    c = checkpoint.config
    settings: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_position,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tied_head,
        "attn_implementation": "eager",
    }
    config = LlamaConfig(**settings)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {name: torch.tensor(tensor.float32()) for name, tensor in checkpoint.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{gguf}: transformers misses {missing} and does not know {unexpected}")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # made on the meta device, holds no numbers
    return Reference(model.eval(), c, dict(checkpoint.tensors))


def texts(reference: Reference, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Random tokens [ROWS, length] and the reference's logits [ROWS, length, vocab] after each."""
    tokens = np.random.default_rng(5).integers(0, reference.config.vocab_size, (ROWS, length))
    return tokens, np.stack([reference.logits(row[np.newaxis])[0] for row in tokens])
