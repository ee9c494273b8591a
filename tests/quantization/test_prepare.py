"""Calibration: what it leaves, what it refuses, how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint, LazyTensor
from hermes_deploy.errors import QuantizationError
from hermes_deploy.graphs import linear_names
from hermes_deploy.quantization import Preparation, hidden_states, prepare
from hermes_deploy.quantization.calibration import CHAT_TOKENS, MOST_TOKENS, cut_chats
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

CHATS = [np.random.default_rng(n).integers(0, 320, size=60 + n).tolist() for n in range(4)]


def prepared(checkpoint: Checkpoint, recipe: str, where: str, chats: Sequence[Sequence[int]] = CHATS) -> Preparation:
    return prepare(checkpoint.config, checkpoint.tensors, chats, load_recipe(recipe), target(where))


def test_awq_leaves_scales_importance_and_directions_of_every_linear(tiny: Checkpoint) -> None:
    found = prepared(tiny, "int4-awq", "cpu")
    names = set(linear_names(tiny.config.layers))
    assert set(found.power) == set(found.largest) == set(found.directions) == names
    assert set(found.scales) == names - {"head"}
    assert (found.chats, found.tokens, found.kept) == (4, sum(map(len, CHATS)), {})


def test_what_is_found_belongs_to_the_model_with_its_scales_folded(tiny: Checkpoint) -> None:
    found = prepared(tiny, "int4-awq", "cpu")
    seen: dict[str, np.ndarray[Any, Any]] = {}
    folded = found.tensors(tiny.config, tiny.tensors)
    hidden_states(tiny.config, folded, CHATS, lambda name, x: seen.update({name: x.copy()}))
    for name, inputs in seen.items():
        np.testing.assert_allclose(found.power[name], np.square(inputs).mean(axis=0), rtol=2e-3, atol=1e-6)
        assert found.largest[name] == pytest.approx(np.abs(inputs).max(), rel=1e-3)


@pytest.mark.parametrize(("recipe", "where"), [("int4-awq", "cpu"), ("int4-awq", "sm89"), ("fp8", "sm89")])
def test_the_same_chats_give_the_same_bytes(recipe: str, where: str, tiny: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepared(tiny, recipe, where).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_static_ranges_alone_need_no_scales(tiny: Checkpoint) -> None:
    found = prepared(tiny, "fp8", "sm89")
    assert not found.scales and not found.directions and found.largest["layers.0.down"] > 0


def test_progress_is_told_layer_by_layer(tiny: Checkpoint) -> None:
    told: list[tuple[int, int]] = []
    prepare(
        tiny.config, tiny.tensors, CHATS, load_recipe("fp8"), target("sm89"), lambda done, of: told.append((done, of))
    )
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, tiny: Checkpoint) -> None:
    broken = dict(tiny.tensors)
    damaged = broken[name].float32().copy()
    damaged.reshape(-1)[-1] = value
    broken[name] = LazyTensor(name, damaged.shape, "F32", lambda: damaged)
    with pytest.raises(QuantizationError, match=f"{name} holds NaN or infinity"):
        prepare(tiny.config, broken, CHATS, load_recipe("fp8"), target("sm89"))


def test_an_activation_that_overflows_is_named(tiny: Checkpoint) -> None:
    broken = dict(tiny.tensors)
    name = "model.layers.0.mlp.up_proj.weight"
    huge = np.full(broken[name].shape, 3e38, np.float32)
    broken[name] = LazyTensor(name, huge.shape, "F32", lambda: huge)
    with pytest.raises(QuantizationError, match=r"input of layers\.0\.down reaches"):
        prepare(tiny.config, broken, CHATS, load_recipe("fp8"), target("sm89"))


def test_a_chat_without_tokens_is_named(tiny: Checkpoint) -> None:
    with pytest.raises(QuantizationError, match="chat 2 of 3 has no token"):
        prepared(tiny, "fp8", "sm89", [[1, 2], [], [3]])


def test_no_chat_at_all_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(QuantizationError, match="needs token sequences"):
        prepared(tiny, "fp8", "sm89", [])


def test_long_chats_are_cut_and_many_are_thinned_evenly() -> None:
    assert [len(ids) for ids in cut_chats([[1] * 500, [2] * 5])] == [CHAT_TOKENS, 5]
    many = cut_chats([[n] * 200 for n in range(1000)])
    assert sum(map(len, many)) <= MOST_TOKENS
    numbers = [ids[0] for ids in many]
    assert len(many) == MOST_TOKENS // CHAT_TOKENS
    assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1 and numbers[-1] == 999


BIG = """
import resource, sys
import numpy as np
from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.layout import expected_shapes
from hermes_deploy.quantization import prepare
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

config = DecoderConfig("MistralForCausalLM", 512, 1024, 24, 8, 2, 128, 4096, 1e-5, 1e4, 2048, tied_head=True)
some = (np.random.default_rng(0).standard_normal(1 << 16) * 0.02).astype(np.float32)

def lazy(name, shape):
    ones = len(shape) == 1
    return LazyTensor(name, shape, "F32", lambda: np.ones(shape, np.float32) if ones else np.resize(some, shape))

tensors = {name: lazy(name, shape) for name, shape in expected_shapes(config).items()}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
prepare(config, tensors, [list(range(100))], load_recipe("int4-awq"), target("cpu"))
whole = 4 * sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, whole)
"""


@pytest.mark.slow
def test_a_model_larger_than_the_memory_it_may_take_is_calibrated() -> None:
    ran = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True, timeout=240)
    before, peak, whole = map(int, ran.stdout.split())
    assert whole > 1 << 30
    assert peak - before < whole / 4
