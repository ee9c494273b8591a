"""The reference's own greedy answers to some prompts, in float32 numpy. Knows no graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.quantization import head_weight
from hermes_deploy.quantization.reference import CheckpointWeights, Past, Progress, layer_states

Float = npt.NDArray[np.float32]

LENGTH = 24
"""Most tokens of an answer."""

_KEPT_BYTES = 256 << 20
"""Weights that stay in memory from one token to the next."""


@dataclass(frozen=True)
class Answers:
    """`tokens` answer `prompts`, each the reference's first choice; `hidden` [tokens in all,
    hidden_size] are the states that they were chosen from, one answer after another."""

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    hidden: Float

    @property
    def whole(self) -> list[tuple[int, ...]]:
        """Prompt and answer without its last token: what is read to judge each token of the answer."""
        return [prompt + tokens[:-1] for prompt, tokens in zip(self.prompts, self.tokens, strict=True)]


def answer(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    prompts: Sequence[Sequence[int]],
    *,
    length: int = LENGTH,
    stop_ids: Collection[int] = (),
    progress: Progress | None = None,
) -> Answers:
    """Greedy answers of the checkpoint, all prompts together; every weight that does not fit into
    _KEPT_BYTES is read once a token.
    `progress`: (tokens done, `length`)."""
    head, weights = head_weight(config, tensors).float32().T, CheckpointWeights(tensors, keep=_KEPT_BYTES)
    past: Past = {}
    pieces: list[list[int]] = [list(prompt) for prompt in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    states: list[Float] = []
    for done in range(length if prompts else 0):
        *_, last = layer_states(config, weights, pieces, past=past)
        states.append(last[np.cumsum(list(map(len, pieces))) - 1])
        pieces = [[int(token)] for token in (states[-1] @ head).argmax(axis=1)]
        for row, (token,) in enumerate(pieces):
            tokens[row].append(token)
        if progress is not None:
            progress(done + 1, length)
    kept = [_whole(each, stop_ids) for each in tokens]
    hidden = [np.stack([states[at][row] for at in range(len(each))]) for row, each in enumerate(kept)]
    return Answers(
        tuple(tuple(prompt) for prompt in prompts),
        tuple(map(tuple, kept)),
        np.concatenate(hidden) if hidden else np.empty((0, config.hidden_size), np.float32),
    )


def _whole(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    """Up to the first stop token, itself included."""
    ends = [at for at, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens
