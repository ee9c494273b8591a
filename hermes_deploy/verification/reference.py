"""What the gate compares with: the checkpoint itself, in float32, over held-out chats.

The chats ship with the package (`heldout.jsonl`, our own writing, other texts than calibration's).
They run once through the numpy decoder; only the last hidden states are kept, [positions, hidden],
and every candidate of the build is compared with those. Knows no graph.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import Checkpoint, DecoderConfig, LazyTensor
from hermes_deploy.errors import GateError
from hermes_deploy.quantization import Chat, EncodesChats, encode_chats, head_weight, parse_chats
from hermes_deploy.quantization.reference import Progress, hidden_states
from hermes_deploy.verification.answers import LENGTH, Answers, answer

POSITIONS = 8192
"""About how many positions are compared."""

TOKENS_A_CHAT = 128
"""Fewer positions than this a chat are had from fewer chats: what stands first is hardly more than the
question, and surprises any model."""

PROMPTS = 8
"""Questions that a candidate answers by itself."""

_FORM = 3
"""Goes up when the same inputs give another reference."""


@dataclass(frozen=True)
class Reference:
    """`text` says what it was, for people. `hidden` [positions, hidden_size] stands for `sequences`,
    one after another; `answers` are its own to prompts of some chats."""

    config: DecoderConfig
    tensors: Mapping[str, LazyTensor]
    sequences: tuple[tuple[int, ...], ...]
    hidden: npt.NDArray[np.float32]
    text: str
    answers: Answers

    @property
    def firsts(self) -> tuple[int, ...]:
        """Of each sequence the first position that is compared (see `first_compared`)."""
        return first_compared(self.sequences)

    @property
    def texts(self) -> Texts:
        return Texts(self.sequences, self.answers.prompts)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of the checkpoint."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def head(self) -> npt.NDArray[np.float32]:
        """[vocab_size, hidden_size], read now: rows of `hidden` times its transpose are logits."""
        return head_weight(self.config, self.tensors).float32()


@dataclass(frozen=True)
class Texts:
    """What a reference is made of: `sequences` to read and `prompts` to answer, as token ids."""

    sequences: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def compared(self) -> int:
        """Positions that are compared; openings that many chats share count once."""
        return sum(map(len, self.sequences)) - sum(first_compared(self.sequences))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([self.sequences, self.prompts]).encode()).hexdigest()


def heldout_chats() -> list[Chat]:
    """Chats (lists of messages) that no calibration has seen."""
    return parse_chats((resources.files(__package__) / "heldout.jsonl").read_bytes(), "heldout.jsonl")


def heldout_texts(tokenizer: EncodesChats, positions: int = POSITIONS) -> Texts:
    """The held-out chats through the model's own template: as sequences, cut so that about `positions`
    of their tokens are compared, and some first questions as prompts.

    For few positions the first chats are taken, not the opening words of all. Cut is what is longest:
    every chat keeps its first tokens up to one common length. Fewer positions only where there are no
    more texts. Raises CheckpointError when the
    template cannot render one.
    """
    chats = heldout_chats()
    every, prompts = encode_chats(tokenizer, chats), _prompts(tokenizer, chats)
    count = min(len(every), -(-positions // TOKENS_A_CHAT))
    while True:
        length = _common_length(every[:count], positions)
        texts = Texts(tuple(tuple(ids[:length]) for ids in every[:count]), prompts)
        if texts.compared >= positions or count == len(every):
            return texts
        count += 1  # these chats were short ones


def first_compared(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Of each sequence the first position that no earlier one has had, with all that stands before it.

    Many templates open every chat with the same words; their answers are the same every time, and
    count once.
    """
    return tuple(
        max((_shared(earlier, ids) for earlier in sequences[:index]), default=0) for index, ids in enumerate(sequences)
    )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens of both are the same."""
    same = min(len(one), len(other))
    return next((at for at in range(same) if one[at] != other[at]), same)


def _common_length(whole: Sequence[Sequence[int]], positions: int) -> int:
    """The least length to which all can be cut so that `positions` are compared; else the longest."""
    firsts, longest = first_compared(whole), max(map(len, whole))

    def compared(length: int) -> int:
        return sum(max(0, min(len(ids), length) - first) for ids, first in zip(whole, firsts, strict=True))

    return bisect.bisect_left(range(longest), positions, lo=1, key=compared)


def _prompts(tokenizer: EncodesChats, chats: Sequence[Chat]) -> tuple[tuple[int, ...], ...]:
    """First questions of chats spread over the whole list, of the shorter half: an answer of a few
    tokens costs as much as reading its question."""
    openings = [chat[: 1 + [message["role"] for message in chat].index("user")] for chat in chats]
    asked = encode_chats(tokenizer, openings)
    short = sorted(sorted(range(len(asked)), key=lambda i: len(asked[i]))[: max(PROMPTS, len(asked) // 2)])
    count = min(PROMPTS, len(short))
    return tuple(tuple(asked[short[i * len(short) // count]]) for i in range(count))


def reference_key(checkpoint: Checkpoint, texts: Texts) -> dict[str, str]:
    """Everything that a reference depends on, for a cache by content. Runs no model."""
    return {"form": str(_FORM), "checkpoint": checkpoint.sha256, "texts": texts.sha256}


def prepare_reference(
    checkpoint: Checkpoint,
    tokenizer: EncodesChats,
    *,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> Reference:
    """Runs the held-out chats through the unquantized checkpoint, and lets it answer some prompts.
    Takes half a minute for the demo, twenty minutes for a 7B on two cores; holds the weights of half
    a layer at a time. `progress`: (steps done, steps in all); a layer of all chats is one, a token of
    all answers is one.
    """
    texts = heldout_texts(tokenizer, positions)
    note = f" ({checkpoint.weights_note})" if checkpoint.weights_note else ""
    return reference_of(
        checkpoint.config,
        checkpoint.tensors,
        texts.sequences,
        f"float32 numpy decoder over {checkpoint.name}{note}; {texts.compared} held-out positions of "
        f"{len(texts.sequences)} chats",
        prompts=texts.prompts,
        stop_ids=checkpoint.tokenizer.stop_ids,
        progress=progress,
    )


def reference_of(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    sequences: Sequence[Sequence[int]],
    text: str,
    *,
    prompts: Sequence[Sequence[int]] = (),
    length: int = LENGTH,
    stop_ids: Sequence[int] = (),
    progress: Progress | None = None,
) -> Reference:
    """The same for sequences of one's own; `length`: most tokens of an answer to a prompt.
    Raises GateError when the checkpoint's answers are not finite.
    """
    steps = config.layers + (length if prompts else 0)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, steps)

    hidden = hidden_states(config, tensors, sequences, progress=lambda done, _: tell(done))
    if not np.isfinite(hidden).all():
        raise GateError("the unquantized checkpoint itself gives NaN or infinity; its weights are damaged")
    answers = answer(config, tensors, prompts, stop_ids=stop_ids, progress=lambda done, _: tell(config.layers + done))
    return Reference(config, tensors, tuple(tuple(ids) for ids in sequences), hidden, text, answers)
