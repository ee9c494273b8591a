"""Folding scales between matrices changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint, DecoderConfig
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import head_weight, hidden_states
from hermes_deploy.quantization.equalize import Float, fold, for_queries, of_values
from tests.fixtures.tiny import make_mistral


def some_scales(config: DecoderConfig) -> dict[str, Float]:
    rng = np.random.default_rng(0)

    def between(size: int) -> Float:
        return np.exp(rng.uniform(-2.5, 2.5, size)).astype(np.float32)

    scales: dict[str, Float] = {}
    for layer in range(config.layers):
        scales |= {f"layers.{layer}.{part}": between(config.hidden_size) for part in ("qkv", "gate_up")}
        scales[f"layers.{layer}.o"] = for_queries(config, between(config.kv_heads * config.head_dim))
        scales[f"layers.{layer}.down"] = between(config.intermediate_size)
    return scales


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"sliding_window": 7},
        {"head_dim": 32, "num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": True},
    ],
    ids=["grouped queries", "window", "wide heads", "a kv head for each", "tied"],
)
def test_a_model_with_folded_scales_answers_the_same(shape: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_mistral(tmp_path / "model", **shape)))
    config, tensors = checkpoint.config, checkpoint.tensors
    sequences = [np.random.default_rng(n).integers(0, 320, size=n).tolist() for n in (40, 1, 13)]
    folded = fold(config, tensors, some_scales(config))
    before, after = hidden_states(config, tensors, sequences), hidden_states(config, folded, sequences)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    assert head_weight(config, folded) is head_weight(config, tensors)


def test_what_a_linear_sees_is_divided_by_its_scale(tiny: Checkpoint) -> None:
    scales = some_scales(tiny.config)
    seen: dict[str, Float] = {}
    seen_folded: dict[str, Float] = {}
    ids = [[5, 6, 7, 8]]
    hidden_states(tiny.config, tiny.tensors, ids, lambda name, x: seen.update({name: x.copy()}))
    folded = fold(tiny.config, tiny.tensors, scales)
    hidden_states(tiny.config, folded, ids, lambda name, x: seen_folded.update({name: x.copy()}))
    for name, scale in scales.items():
        np.testing.assert_allclose(seen_folded[name] * scale, seen[name], rtol=1e-3, atol=1e-5)


def test_folding_leaves_the_source_as_it_was(tiny: Checkpoint) -> None:
    before = {name: tensor.float32().copy() for name, tensor in tiny.tensors.items()}
    folded = fold(tiny.config, tiny.tensors, some_scales(tiny.config))
    first = {name: tensor.load().copy() for name, tensor in folded.items()}
    assert all((tensor.float32() == before[name]).all() for name, tensor in tiny.tensors.items())
    assert all((tensor.load() == first[name]).all() for name, tensor in folded.items())


def test_without_scales_nothing_changes(tiny: Checkpoint) -> None:
    assert fold(tiny.config, tiny.tensors, {}) == tiny.tensors


def test_values_of_a_kv_head_are_found_in_each_of_its_query_heads(tiny: Checkpoint) -> None:
    values = np.arange(1, 33, dtype=np.float32)
    assert (of_values(tiny.config, for_queries(tiny.config, values)) == values).all()


@pytest.mark.parametrize(
    ("name", "scale", "complaint"),
    [
        ("layers.2.qkv", np.ones(64), "no linear of a 2-layer decoder"),
        ("head", np.ones(64), "no linear"),
        ("layers.0.down", np.ones(64), "128 inputs|has 128"),
        ("layers.0.qkv", np.zeros(64), "not positive"),
        ("layers.0.qkv", np.full(64, np.nan), "not positive and finite"),
        ("layers.0.o", np.arange(1, 65), "query heads that share"),
    ],
)
def test_a_scale_that_cannot_be_folded_is_refused(tiny: Checkpoint, name: str, scale: Any, complaint: str) -> None:
    with pytest.raises(QuantizationError, match=complaint):
        fold(tiny.config, tiny.tensors, {name: scale.astype(np.float32)})
