"""What a recipe needs to know of a model before it is quantized, from a few chats.

Runs the float32 reference over token ids (`calibration_chats` has the texts), layer by layer: never
more than half a layer's weights and the activations of one layer are in memory, whatever the model.
For each linear it finds how large its inputs get, how much each of them matters, in which directions
they move together, what scales to fold in (`awq`, `smoothquant`), and which had better stay as they are;
for a recipe that keeps keys and values in 8 bits, the scales of those (`cache_scales`).
Chats are cut to CHAT_TOKENS. (On SmolLM2-135M, 4 bits in blocks of 32, the KL over 1,440 positions was
0.139 with 16 chats so cut and 0.135 with 37.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.awq import search_scale
from hermes_deploy.quantization.blocks import BlockForm
from hermes_deploy.quantization.cache_scales import CacheBounds
from hermes_deploy.quantization.compensate import directions
from hermes_deploy.quantization.equalize import for_queries
from hermes_deploy.quantization.linears import choose_block_size
from hermes_deploy.quantization.preparation import Preparation
from hermes_deploy.quantization.reference import (
    LINEAR_SOURCES,
    Apply,
    CheckpointWeights,
    Float,
    Progress,
    hidden_states,
    layer_states,
)
from hermes_deploy.quantization.smoothquant import MOST_ERROR, search_smoothing
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target

CHAT_TOKENS = 128
"""Of each chat, from its start."""

MOST_TOKENS = 4096
"""Of all chats together; of more, evenly chosen ones are used. Bounds the memory of activations:
one layer of a 7B over 2,048 tokens was prepared in 1.4 GB, weights and interpreter included."""

SAMPLE_COLUMNS = 256
"""Outputs of a linear that scales are searched on, evenly spaced: a bound on time."""


@dataclass(frozen=True)
class ActivationRanges:
    """By linear ("layers.0.qkv", "head"), over `tokens` positions of `chats` chats: `largest` is
    max|x|, `power` [K] the mean of x * x of each input."""

    largest: Mapping[str, float]
    power: Mapping[str, Float]
    chats: int
    tokens: int


def prepare(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    target: Target,
    progress: Progress | None = None,
) -> Preparation:
    """What `recipe` needs to quantize this model for `target`, from `sequences` of token ids, one a chat.

    `progress`: (layers done, layers in all). Same arguments, same result, bit for bit.
    Raises QuantizationError for a weight or an activation that is not finite, naming it; for a chat
    without tokens; when no block size of the target divides the model.
    """
    used = cut_chats(sequences)
    weights = _SampledWeights(tensors)
    work = _Work(config, recipe, target, weights)
    cache = CacheBounds(config) if recipe.kv == "int8" else None
    keep = None if cache is None else cache.keep
    for layer, _ in enumerate(layer_states(config, weights, used, work.see, keep=keep)):
        if progress is not None and layer <= config.layers:
            progress(layer, config.layers)
    return Preparation(
        work.scales,
        work.largest,
        work.power,
        work.kept,
        len(used),
        sum(map(len, used)),
        work.directions,
        {} if cache is None else cache.scales(work.scales),
    )


def cut_chats(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The part of the chats that calibration runs over: see CHAT_TOKENS and MOST_TOKENS."""
    for number, ids in enumerate(sequences, start=1):
        if len(ids) == 0:
            raise QuantizationError(f"calibration chat {number} of {len(sequences)} has no token; leave it out")
    cut = [ids[:CHAT_TOKENS] for ids in sequences]
    total = sum(map(len, cut))
    if total <= MOST_TOKENS:
        return cut
    share = MOST_TOKENS / total
    return [ids for i, ids in enumerate(cut) if int((i + 1) * share) > int(i * share)]


class _Matrix(NamedTuple):
    name: str
    rows: int


def block_form(config: DecoderConfig, recipe: Recipe, target: Target) -> BlockForm:
    """The blocks that `quantize` will give the linears of a layer."""
    widths = {
        "qkv": config.hidden_size,
        "o": config.heads * config.head_dim,
        "gate_up": config.hidden_size,
        "down": config.intermediate_size,
    }
    matrices = [_Matrix(f"layers.0.{part}", rows) for part, rows in widths.items()]
    size = choose_block_size(matrices, target.block_sizes, recipe.block_size)
    kind = np.dtype(np.float16 if target.activation == "fp16" else np.float32)
    return BlockForm(4, target.engine == "tensorrt", size, kind)


class _SampledWeights(CheckpointWeights):
    """Keeps some outputs of each linear, [K, about SAMPLE_COLUMNS], until they are taken; checks all."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        super().__init__(_Checked(tensors))
        self._samples: dict[str, Float] = {}

    def linear(self, name: str) -> Apply:
        _, layer, part = name.split(".")
        matrices = [self._tensors[f"model.layers.{layer}.{each}.weight"].float32() for each in LINEAR_SOURCES[part]]
        ends = np.cumsum([len(matrix) for matrix in matrices])
        step = max(1, ends[-1] // SAMPLE_COLUMNS)
        self._samples[name] = np.ascontiguousarray(np.concatenate([matrix[::step] for matrix in matrices]).T)

        def apply(inputs: Float) -> Float:
            out = np.empty((len(inputs), ends[-1]), dtype=np.float32)
            for matrix, end in zip(matrices, ends, strict=True):
                np.matmul(inputs, matrix.T, out=out[:, end - len(matrix) : end])
            return out

        return apply

    def take(self, name: str) -> Float:
        return self._samples.pop(name)


class _Checked(Mapping[str, LazyTensor]):
    """The same tensors; one that holds NaN or infinity raises QuantizationError when it is read."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        tensor = self._tensors[name]

        def load() -> npt.NDArray[Any]:
            values = tensor.load()
            if not all(np.isfinite(piece).all() for piece in np.array_split(values, max(1, len(values) // 256))):
                raise QuantizationError(f"{name} holds NaN or infinity; the checkpoint is damaged, get it again")
            return values

        return LazyTensor(tensor.name, tensor.shape, tensor.dtype, load)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Work:
    """Sees the inputs of every linear once, in order, and fills the parts of a Preparation."""

    def __init__(self, config: DecoderConfig, recipe: Recipe, target: Target, weights: _SampledWeights) -> None:
        self._config, self._recipe, self._target, self._weights = config, recipe, target, weights
        self._form = block_form(config, recipe, target) if recipe.method == "awq" else None
        self.scales: dict[str, Float] = {}
        self.largest: dict[str, float] = {}
        self.power: dict[str, Float] = {}
        self.directions: dict[str, Float] = {}
        self.kept: dict[str, str] = {}

    def see(self, name: str, inputs: Float) -> None:
        """`inputs` [positions, K] of linear `name`."""
        _check_inputs(name, inputs)
        bound = None
        if name != "head":
            scale, bound = self._search(name, self._weights.take(name), inputs)
            if scale is not None:
                self.scales[name] = scale
                inputs = inputs / scale
        self.largest[name] = _peak(inputs) if bound is None else bound
        self.power[name] = _power(inputs)
        if self._recipe.method == "awq":
            self.directions[name] = directions(inputs)

    def _search(self, name: str, columns: Float, inputs: Float) -> tuple[Float | None, float | None]:
        """The scale of a linear and the bound of its inputs, where the recipe's method finds them."""
        if self._form is not None:
            base = np.abs(inputs).mean(axis=0, dtype=np.float32)
            return search_scale(columns, inputs, self._tie(name, base, np.mean), self._form, name), None
        if self._recipe.method != "smoothquant":
            return None, None
        found = search_smoothing(columns, inputs, lambda magnitude: self._tie(name, magnitude, np.max))
        if found.error <= MOST_ERROR:
            return found.scale, found.bound
        self.kept[name] = f"8 bits would cost {found.error:.2%} of its output, over {MOST_ERROR:.2%}"
        return None, None

    def _tie(self, name: str, magnitude: Float, over: Callable[..., Float]) -> Float:
        """Of an `o`, the query heads that read the same values must share a scale."""
        if not name.endswith(".o"):
            return magnitude
        heads = magnitude.reshape(self._config.kv_heads, -1, self._config.head_dim)
        return for_queries(self._config, over(heads, axis=1).reshape(-1))


def _check_inputs(name: str, inputs: Float) -> None:
    peak = _peak(inputs)
    if not 0 <= peak < float("inf"):
        raise QuantizationError(f"the input of {name} reaches {peak} in calibration; the checkpoint is damaged")


def _peak(inputs: Float) -> float:
    return max(float(inputs.max()), -float(inputs.min()))


def _power(inputs: Float) -> Float:
    power: Float = np.einsum("pk,pk->k", inputs, inputs) / np.float32(len(inputs))
    return power


def calibrate(
    config: DecoderConfig, tensors: Mapping[str, LazyTensor], sequences: Sequence[Sequence[int]]
) -> ActivationRanges:
    """Runs `sequences` of token ids, one a chat, and gives the ranges.

    Raises QuantizationError when an activation is not finite: the checkpoint is damaged.
    """
    largest: dict[str, float] = {}
    power: dict[str, Float] = {}

    def keep(name: str, inputs: Float) -> None:
        _check_inputs(name, inputs)
        largest[name] = _peak(inputs)
        power[name] = _power(inputs)

    hidden_states(config, tensors, sequences, observe=keep)
    return ActivationRanges(largest, power, chats=len(sequences), tokens=sum(map(len, sequences)))
