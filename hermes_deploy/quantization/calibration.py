"""How large the inputs of every linear get: what static activation scales are made from.

Runs the float32 reference over a few chats and keeps max|x| a linear (max-abs calibration). The
chats ship with the package (`chats.jsonl`, our own writing: several turns, several languages,
code); the caller renders them with the model's own template and passes token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.reference import Float, hidden_states

Chat = list[dict[str, str]]
"""Messages with `role` and `content`, oldest first."""


@dataclass(frozen=True)
class ActivationRanges:
    """`largest`: max|x| over `tokens` positions of `chats` chats, by linear ("layers.0.qkv", "head")."""

    largest: Mapping[str, float]
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


def calibrate(
    config: DecoderConfig, tensors: Mapping[str, LazyTensor], sequences: Sequence[Sequence[int]]
) -> ActivationRanges:
    """Runs `sequences` of token ids, one a chat, and gives the ranges.

    Raises QuantizationError when an activation is not finite: the checkpoint is damaged.
    """
    largest: dict[str, float] = {}

    def keep(name: str, inputs: Float) -> None:
        peak = max(float(inputs.max()), -float(inputs.min()))
        if not 0 <= peak < float("inf"):
            raise QuantizationError(f"the input of {name} reaches {peak} in calibration; the checkpoint is damaged")
        largest[name] = max(peak, largest.get(name, 0.0))

    hidden_states(config, tensors, sequences, observe=keep)
    return ActivationRanges(largest, chats=len(sequences), tokens=sum(map(len, sequences)))
