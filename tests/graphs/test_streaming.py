"""Saving a model never needs the model in memory."""

from __future__ import annotations

import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model

CONFIG = DecoderConfig(
    architecture="MistralForCausalLM",
    vocab_size=512,
    hidden_size=128,
    layers=6,
    heads=4,
    kv_heads=2,
    head_dim=32,
    intermediate_size=512,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position=256,
)


class CountingTensors:
    """A random checkpoint that knows how many of its arrays are alive."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.alive = 0
        self.most_alive = 0
        self.loads = 0
        c = CONFIG
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
            "model.norm.weight": (c.hidden_size,),
            "lm_head.weight": (c.vocab_size, c.hidden_size),
        }
        for i in range(c.layers):
            layer, kv = f"model.layers.{i}", c.kv_heads * c.head_dim
            shapes |= {
                f"{layer}.input_layernorm.weight": (c.hidden_size,),
                f"{layer}.post_attention_layernorm.weight": (c.hidden_size,),
                f"{layer}.self_attn.q_proj.weight": (c.heads * c.head_dim, c.hidden_size),
                f"{layer}.self_attn.k_proj.weight": (kv, c.hidden_size),
                f"{layer}.self_attn.v_proj.weight": (kv, c.hidden_size),
                f"{layer}.self_attn.o_proj.weight": (c.hidden_size, c.heads * c.head_dim),
                f"{layer}.mlp.gate_proj.weight": (c.intermediate_size, c.hidden_size),
                f"{layer}.mlp.up_proj.weight": (c.intermediate_size, c.hidden_size),
                f"{layer}.mlp.down_proj.weight": (c.hidden_size, c.intermediate_size),
            }
        self.tensors = {
            name: LazyTensor(name, shape, "F32", lambda shape=shape: self._load(shape))
            for name, shape in shapes.items()
        }

    def _load(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        values = np.full(shape, 0.5, dtype=self.dtype)
        self.loads += 1
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(values, self._gone)
        return values

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("dialect", ["portable", "ort"])
def test_building_loads_nothing(dialect: Any) -> None:
    source = CountingTensors(np.float32)
    build_decoder(GraphSpec(CONFIG, dialect, "fp32", 64), source.tensors)
    assert source.loads == 0


@pytest.mark.parametrize("activation", ["fp32", "fp16"])
def test_saving_holds_the_sources_of_one_weight_at_a_time_and_keeps_none(activation: Any, tmp_path: Path) -> None:
    source = CountingTensors(np.float32)
    model = build_decoder(GraphSpec(CONFIG, "portable", activation, 64), source.tensors)
    save_model(model, tmp_path / "model.onnx")
    assert source.loads == len(source.tensors)
    assert source.most_alive == 3  # q, k and v, which one matrix joins
    assert source.alive == 0
    assert model.graph.initializers["layers.0.qkv.weight"].const_value is not None


def test_peak_memory_is_a_few_weights_not_the_model(tmp_path: Path) -> None:
    source = CountingTensors(np.float32)
    largest = CONFIG.hidden_size * 2 * CONFIG.intermediate_size * 4
    whole = sum(int(np.prod(tensor.shape)) * 4 for tensor in source.tensors.values())
    assert whole > 10 * largest
    tracemalloc.start()
    save_model(build_decoder(GraphSpec(CONFIG, "ort", "fp32", 64), source.tensors), tmp_path / "model.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * largest


def test_a_model_can_be_saved_twice(tmp_path: Path) -> None:
    model = build_decoder(GraphSpec(CONFIG, "ort", "fp32", 64), CountingTensors(np.float32).tensors)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name / "model.onnx")
    assert (tmp_path / "a/model.onnx.data").read_bytes() == (tmp_path / "b/model.onnx.data").read_bytes()
