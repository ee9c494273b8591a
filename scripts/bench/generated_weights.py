"""Weights of the true shape from nothing: `generated_tensors(config)` gives lazy bfloat16 tensors. Deterministic.

A slab of normals is made once; each tensor is that slab at an offset of its own, scaled, with 1 in 200
input channels eight times larger, repeated downwards. Making a tensor costs little more than copying
it, and `seconds_spent` says how much, so that a benchmark can tell it apart from its own work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.layout import expected_shapes
from hermes_deploy.graphs import linear_names
from hermes_deploy.quantization import Preparation

BF16 = np.dtype(ml_dtypes.bfloat16)
_SLAB = 1 << 22
_ROWS = 64
"""Rows of a tensor that are different from each other."""


def decoder(
    hidden: int, layers: int, intermediate: int, vocabulary: int, heads: int = 32, head_dim: int = 128
) -> DecoderConfig:
    """A Mistral with 8 key/value heads, as Mistral 7B and Mistral NeMo have."""
    return DecoderConfig(
        architecture="MistralForCausalLM",
        vocab_size=vocabulary,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=head_dim,
        intermediate_size=intermediate,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position=32768,
    )


def mistral_7b(layers: int = 32) -> DecoderConfig:
    return decoder(4096, layers, 14336, 32002)


def mistral_nemo(layers: int = 40) -> DecoderConfig:
    return decoder(5120, layers, 14336, 131072)


class GeneratedTensors(dict[str, LazyTensor]):
    """Hugging Face name -> lazy tensor. `seconds_spent`: wall clock inside all `load()`s so far."""

    def __init__(self, config: DecoderConfig) -> None:
        self.seconds_spent = 0.0
        super().__init__(
            (name, LazyTensor(name, shape, "BF16", self._loader(name, shape)))
            for name, shape in expected_shapes(config).items()
        )

    def _loader(self, name: str, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:
        def load() -> npt.NDArray[Any]:
            began = time.perf_counter()
            array = _generate(name, shape)
            self.seconds_spent += time.perf_counter() - began
            return array

        return load


def _generate(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    columns = shape[-1]
    channels = np.random.default_rng(seed).random(columns, dtype=np.float32)
    if len(shape) == 1:
        return (0.5 + channels).astype(BF16)
    rows = min(shape[0], _ROWS, _SLAB // columns)
    spread = np.where(channels < 0.005, 8.0, 1.0).astype(np.float32) / np.sqrt(np.float32(columns))
    start = seed % (_SLAB - rows * columns + 1)
    # bits, because numpy copies and repeats them faster than a bfloat16
    first = (_slab()[start : start + rows * columns].reshape(rows, columns) * spread).astype(BF16).view(np.uint16)
    array = np.empty(shape, dtype=np.uint16)
    for row in range(0, shape[0], rows):
        array[row : row + rows] = first[: shape[0] - row]
    return array.view(BF16)


@cache
def _slab() -> npt.NDArray[np.float32]:
    return np.random.default_rng(20261123).standard_normal(_SLAB, dtype=np.float32)


def generated_preparation(config: DecoderConfig) -> Preparation:
    """What calibration would have found: normal inputs, 1 channel in 200 twenty times larger; no scales."""
    inputs = {"qkv": config.hidden_size, "o": config.heads * config.head_dim}
    inputs |= {"gate_up": config.hidden_size, "down": config.intermediate_size, "head": config.hidden_size}
    power = {}
    for name in linear_names(config.layers):
        width = inputs[name.rsplit(".", 1)[-1]]
        power[name] = np.where(np.arange(width) % 200 == 7, 400.0, 1.0).astype(np.float32)
    return Preparation({}, dict.fromkeys(power, 80.0), power, {}, chats=0, tokens=0)
