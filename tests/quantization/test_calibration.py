"""The numpy decoder that calibration and the gate stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import QuantizationError
from hermes_deploy.graphs import linear_names
from hermes_deploy.quantization import (
    ActivationRanges,
    calibrate,
    head_weight,
    hidden_states,
)
from tests.fixtures.tiny import make_mistral


@pytest.mark.parametrize(
    "shape",
    [{}, {"sliding_window": 7}, {"head_dim": 32, "num_key_value_heads": 1}, {"tie_word_embeddings": True}],
    ids=["plain", "window", "wide heads", "tied"],
)
def test_the_reference_agrees_with_transformers(shape: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_mistral(tmp_path / "model", **shape)
    checkpoint = open_checkpoint(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 320, size=n).tolist() for n in (40, 1, 13)]
    hidden = hidden_states(checkpoint.config, checkpoint.tensors, sequences)
    ours = hidden @ head_weight(checkpoint.config, checkpoint.tensors).float32().T
    with torch.no_grad():
        logits = [theirs(torch.tensor([ids])).logits[0].numpy() for ids in sequences]
    assert np.abs(ours - np.concatenate(logits)).max() < 2e-4


def test_every_linear_gets_a_range(tiny: Checkpoint, ranges: ActivationRanges) -> None:
    assert set(ranges.largest) == set(ranges.power) == set(linear_names(tiny.config.layers))
    assert all(peak > 0 for peak in ranges.largest.values())
    assert ranges.power["layers.0.down"].shape == (tiny.config.intermediate_size,)
    assert all(ranges.power[name].max() <= peak**2 for name, peak in ranges.largest.items())
    assert ranges.chats == 3


def test_a_damaged_weight_is_found_in_calibration(tiny: Checkpoint) -> None:
    broken = dict(tiny.tensors)
    name = "model.layers.1.input_layernorm.weight"
    broken[name] = type(broken[name])(name, broken[name].shape, "F32", lambda: np.full(64, np.nan, np.float32))
    with pytest.raises(QuantizationError, match=r"layers\.1\.qkv reaches nan"):
        calibrate(tiny.config, broken, [[1, 2, 3]])


@pytest.mark.parametrize("ids", [[], [320], [-1]])
def test_ids_that_the_model_cannot_have_are_refused(tiny: Checkpoint, ids: list[int]) -> None:
    with pytest.raises(QuantizationError):
        hidden_states(tiny.config, tiny.tensors, [ids])
