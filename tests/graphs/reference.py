"""The other side of every comparison: transformers in fp32, eager attention, and its tensors as a checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from tests.fixtures.tiny import make_mistral


@dataclass(frozen=True)
class Reference:
    model: Any
    config: DecoderConfig
    tensors: dict[str, LazyTensor]

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """tokens [B, S] without padding to logits [B, S, vocab]."""
        import torch

        with torch.no_grad():
            answer: npt.NDArray[np.float32] = self.model(torch.from_numpy(tokens)).logits.numpy()
        return answer


def make_reference(folder: Path, **overrides: Any) -> Reference:
    """A tiny random Mistral; `overrides` are names of MistralConfig."""
    import torch
    from transformers import MistralForCausalLM

    make_mistral(folder, **overrides)
    model = MistralForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    c = model.config
    config = DecoderConfig(
        architecture="MistralForCausalLM",
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        intermediate_size=c.intermediate_size,
        rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_parameters["rope_theta"],
        max_position=c.max_position_embeddings,
        sliding_window=c.sliding_window,
        tied_head=c.tie_word_embeddings,
    )
    tensors = {
        name: LazyTensor(name, tuple(value.shape), "F32", lambda value=value: value.numpy())
        for name, value in model.state_dict().items()
    }
    return Reference(model, config, tensors)
