"""The demo model, whole: both dialects against transformers holding the same dequantized tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.graphs import GraphSpec
from tests.graphs.driver import drive
from tests.graphs.reference import Reference

CONTEXT = 160


@pytest.fixture(scope="module")
def demo() -> Reference:
    """transformers' Llama given the tensors of the checkpoint, nothing of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    checkpoint = open_checkpoint("smollm2")
    c = checkpoint.config
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_position,
        rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_theta,
        tie_word_embeddings=c.tied_head,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {name: torch.tensor(tensor.float32()) for name, tensor in checkpoint.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # made on the meta device, holds no numbers
    return Reference(model.eval(), c, dict(checkpoint.tensors))


@pytest.mark.parametrize("dialect", ["portable", "ort"])
def test_prompt_chunks_and_ragged_decoding_agree(demo: Reference, dialect: Any, tmp_path: Path) -> None:
    spec = GraphSpec(demo.config, dialect, "fp32", CONTEXT, "tied")
    driver = drive(demo, tmp_path, spec, slots=2)
    tokens = np.random.default_rng(1).integers(0, demo.config.vocab_size, (2, CONTEXT))
    expected = demo.logits(tokens)
    worst = 0.0
    for start, end in ((0, 100), (100, 150)):
        found = driver.step(slice(0, 1), tokens[:1, start:end], [start])
        worst = max(worst, float(np.abs(found - expected[:1, start:end]).max()))
    driver.step(slice(1, 2), tokens[1:, :40], [0])
    for step in range(4):
        at = np.array([150 + step, 40 + step])
        found = driver.step(slice(0, 2), tokens[np.arange(2), at][:, None], list(at))
        worst = max(worst, float(np.abs(found[:, 0] - expected[np.arange(2), at]).max()))
    assert worst < 2e-4
