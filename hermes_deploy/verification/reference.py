"""What the gate compares with: the checkpoint itself, in float32, over held-out chats.

The chats ship with the package (`heldout.jsonl`, our own writing, other texts than calibration's).
They run once through the numpy decoder; only the last hidden states are kept, [positions, hidden],
and every candidate of the build is compared with those. Knows no graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import Checkpoint, DecoderConfig, LazyTensor
from hermes_deploy.errors import GateError
from hermes_deploy.quantization import Chat, EncodesChats, encode_chats, head_weight, hidden_states, parse_chats

POSITIONS = 1400
"""About how many positions are compared."""


@dataclass(frozen=True)
class Reference:
    """`text` says what it was, for people. `hidden` [positions, hidden_size] stands for `sequences`,
    one after another."""

    config: DecoderConfig
    tensors: Mapping[str, LazyTensor]
    sequences: tuple[tuple[int, ...], ...]
    hidden: npt.NDArray[np.float32]
    text: str

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of the checkpoint."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def head(self) -> npt.NDArray[np.float32]:
        """[vocab_size, hidden_size], read now: rows of `hidden` times its transpose are logits."""
        return head_weight(self.config, self.tensors).float32()


def heldout_chats() -> list[Chat]:
    """Chats (lists of messages) that no calibration has seen."""
    return parse_chats((resources.files(__package__) / "heldout.jsonl").read_bytes(), "heldout.jsonl")


def heldout_sequences(tokenizer: EncodesChats, positions: int = POSITIONS) -> list[list[int]]:
    """The held-out chats through the model's own template, cut so that each has an equal share of
    `positions`. Raises CheckpointError when the template cannot render one."""
    chats = heldout_chats()
    share = -(-positions // len(chats))
    return [ids[:share] for ids in encode_chats(tokenizer, chats)]


def prepare_reference(checkpoint: Checkpoint, tokenizer: EncodesChats, *, positions: int = POSITIONS) -> Reference:
    """Runs the held-out chats through the unquantized checkpoint. Takes seconds for the demo, about
    two minutes for a 7B on a few cores; memory is about one matrix.
    """
    sequences = heldout_sequences(tokenizer, positions)
    note = f" ({checkpoint.weights_note})" if checkpoint.weights_note else ""
    total = sum(map(len, sequences))
    text = f"float32 numpy decoder over {checkpoint.name}{note}; {total} held-out positions of {len(sequences)} chats"
    return reference_of(checkpoint.config, checkpoint.tensors, sequences, text)


def reference_of(
    config: DecoderConfig, tensors: Mapping[str, LazyTensor], sequences: Sequence[Sequence[int]], text: str
) -> Reference:
    """The same for sequences of one's own. Raises GateError when the checkpoint's answers are not finite."""
    hidden = hidden_states(config, tensors, sequences)
    if not np.isfinite(hidden).all():
        raise GateError("the unquantized checkpoint itself gives NaN or infinity; its weights are damaged")
    return Reference(config, tensors, tuple(tuple(ids) for ids in sequences), hidden, text)
