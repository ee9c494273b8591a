"""How large the inputs of every linear get: what scales are made from.

Runs the float32 reference over a few chats and keeps, for each linear, max|x| (the static scale of
FP8 activations) and the mean square of every input (which weights matter to INT4 rounding). The
chats ship with the package (`chats.jsonl`, our own writing: several turns, several languages,
code); the caller renders them with the model's own template (`encode_chats`) and passes token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import CheckpointError, QuantizationError, RequestError
from hermes_deploy.quantization.reference import Float, hidden_states

Chat = list[dict[str, str]]
"""Messages with `role` and `content`, oldest first."""


class EncodesChats(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


@dataclass(frozen=True)
class ActivationRanges:
    """By linear ("layers.0.qkv", "head"), over `tokens` positions of `chats` chats: `largest` is
    max|x|, `power` [K] the mean of x * x of each input."""

    largest: Mapping[str, float]
    power: Mapping[str, Float]
    chats: int
    tokens: int


def calibration_chats(count: int | None = None) -> list[Chat]:
    """The first `count` chats that ship with the package (all of them for None).

    Raises QuantizationError when more are asked for than there are.
    """
    text = (resources.files(__package__) / "chats.jsonl").read_text(encoding="utf-8")
    chats: list[Chat] = [json.loads(line) for line in text.splitlines() if line.strip()]
    if count is not None and count > len(chats):
        raise QuantizationError(f"{count} calibration chats were asked for; {len(chats)} ship with the package")
    return chats[:count]


def encode_chats(tokenizer: EncodesChats, chats: Sequence[Chat]) -> list[list[int]]:
    """Token ids of each chat. A system message is left out for a template that refuses one.

    Raises CheckpointError when the checkpoint's template cannot render a chat of user and assistant.
    """
    sequences = []
    for chat in chats:
        try:
            ids = tokenizer.encode_chat(chat)
        except RequestError:
            ids = _without_system(tokenizer, chat)
        if not ids:
            raise CheckpointError("the checkpoint's chat template renders a chat to nothing; is it a chat model's?")
        sequences.append(ids)
    return sequences


def _without_system(tokenizer: EncodesChats, chat: Chat) -> list[int]:
    try:
        return tokenizer.encode_chat([message for message in chat if message["role"] != "system"])
    except RequestError as error:
        raise CheckpointError(f"the checkpoint cannot render a plain chat of user and assistant: {error}") from None


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
