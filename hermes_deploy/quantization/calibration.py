"""How large the inputs of every linear get: what scales are made from.

Runs the float32 reference over a few chats and keeps, for each linear, max|x| (the static scale of
FP8 activations) and the mean square of every input (which weights matter to INT4 rounding). Takes
token ids: `calibration_chats` has the texts and renders them with the model's own template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.preparation import Preparation
from hermes_deploy.quantization.reference import Float, Progress, hidden_states
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target


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

    `progress`: (layers done, layers in all).
    Raises QuantizationError when an activation is not finite: the checkpoint is damaged.
    """
    ranges = calibrate(config, tensors, sequences)
    return Preparation({}, ranges.largest, ranges.power, {}, ranges.chats, ranges.tokens)


def calibrate(
    config: DecoderConfig, tensors: Mapping[str, LazyTensor], sequences: Sequence[Sequence[int]]
) -> ActivationRanges:
    """Runs `sequences` of token ids, one a chat, and gives the ranges.

    Raises QuantizationError when an activation is not finite: the checkpoint is damaged.
    """
    largest: dict[str, float] = {}
    power: dict[str, Float] = {}

    def keep(name: str, inputs: Float) -> None:
        peak = max(float(inputs.max()), -float(inputs.min()))
        if not 0 <= peak < float("inf"):
            raise QuantizationError(f"the input of {name} reaches {peak} in calibration; the checkpoint is damaged")
        largest[name] = peak
        power[name] = np.einsum("pk,pk->k", inputs, inputs) / np.float32(len(inputs))

    hidden_states(config, tensors, sequences, observe=keep)
    return ActivationRanges(largest, power, chats=len(sequences), tokens=sum(map(len, sequences)))
