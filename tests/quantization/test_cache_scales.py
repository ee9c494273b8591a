"""Scales of 8-bit keys and values: wide enough at every position, and those of the model that is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import Preparation, prepare
from hermes_deploy.quantization.cache_scales import HEADROOM, QUIETEST, CacheBounds, through_codes
from hermes_deploy.quantization.reference import CheckpointWeights, Float, _rotary_table, _rotate, layer_states
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

CHATS = [np.random.default_rng(n).integers(0, 320, size=60 + n).tolist() for n in range(4)]
CPU = target("cpu")


def prepared(tiny: Checkpoint, recipe: str = "int4-awq-kv8") -> Preparation:
    return prepare(tiny.config, tiny.tensors, CHATS, load_recipe(recipe), CPU)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 16), position=st.integers(0, 30_000))
def test_a_key_fits_its_scale_at_any_position_however_short_the_chats_were(
    seed: int, position: int, tiny: Checkpoint
) -> None:
    config = replace(tiny.config, max_position=1 << 15)
    keys = np.random.default_rng(seed).normal(size=(5, config.kv_heads, config.head_dim)).astype(np.float32)
    bounds = CacheBounds(config)
    bounds.keep("layers.0.key", _rotate(keys, *_rotary_table(config, 0, 5)))
    scale = bounds.scales({})["layers.0.key"]
    far = _rotate(keys, *_rotary_table(config, position, position + 5))
    assert np.abs(far / scale).max() <= 127
    assert np.abs(through_codes(far, scale) - far).max() <= scale.max() * 0.501


def test_the_largest_value_has_headroom_and_a_quiet_channel_is_not_taken_for_a_dead_one(tiny: Checkpoint) -> None:
    values = np.zeros((3, tiny.config.kv_heads, tiny.config.head_dim), np.float32)
    values[1, :, 4] = -2.0
    bounds = CacheBounds(tiny.config)
    for part in (values, values / 2):
        assert bounds.keep("layers.1.value", part) is part
    scale = bounds.scales({})["layers.1.value"]
    np.testing.assert_allclose(scale[:, 4], 2 * HEADROOM / 127, rtol=1e-6)
    np.testing.assert_allclose(scale[:, 0], 2 * HEADROOM * QUIETEST / 127, rtol=1e-6)
    assert (CacheBounds(tiny.config).scales({})) == {}


def test_scales_belong_to_the_model_with_its_other_scales_folded(tiny: Checkpoint) -> None:
    found = prepared(tiny)
    seen: dict[str, Float] = {}

    def keep(name: str, values: Float) -> Float:
        peak = np.abs(values).max(axis=0)
        seen[name] = np.maximum(peak, seen.get(name, peak))
        return values

    weights = CheckpointWeights(found.tensors(tiny.config, tiny.tensors))
    for _ in layer_states(tiny.config, weights, CHATS, keep=keep):
        pass
    assert found.cache.keys() == seen.keys() and len(seen) == 2 * tiny.config.layers
    for name, peak in seen.items():
        reached = peak / found.cache[name]
        assert reached.max() <= 127
        if name.endswith("value"):
            np.testing.assert_allclose(reached, 127 / HEADROOM, rtol=1e-3)


def test_only_a_recipe_that_asks_for_it_gets_them_and_the_file_keeps_them(tiny: Checkpoint, tmp_path: Path) -> None:
    assert prepared(tiny, "int4-awq").cache == {}
    for name in ("a", "b"):
        prepared(tiny).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    made, read = prepared(tiny), Preparation.load(tmp_path / "a")
    assert read.cache.keys() == made.cache.keys()
    assert all((read.cache[name] == made.cache[name]).all() for name in made.cache)


@pytest.mark.parametrize("wrong", [{"cache/layers.0.o": (1.0, 1.0)}, {"cache/layers.0.key": (1.0, 0.0)}])
def test_a_file_with_a_scale_that_is_none_is_refused(wrong: dict[str, tuple[float, float]], tmp_path: Path) -> None:
    entries = {name: np.asarray([value], np.float32) for name, value in wrong.items()}
    np.savez(tmp_path / "p.npz", counts=np.asarray([1, 1]), **entries)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="is no preparation: entry 'cache/"):
        Preparation.load(tmp_path / "p.npz")
