"""Each stage of a build against the one before, so that a failure names the stage.

    checkpoint ──weights──> the same decoder with the graph's own weights ──graph and kernels──> the graph as it runs

The first step is what quantization did: checkpoint and stored weights go through the same float32
numpy decoder, side by side, layer by layer, so that the error of every layer can be seen too; keys and
values that the graph keeps in 8 bits go through its codes, and how far those move them is kept. The
second is what the form of the graph and its kernels did. Both over the first tokens of some of the
held-out chats, with the weights of half a layer of each in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hermes_deploy.quantization.reference import CheckpointWeights, layer_states
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.measures import compare_rows
from hermes_deploy.verification.reference import Reference
from hermes_deploy.verification.result import KERNELS, WEIGHTS, Chain, Step
from hermes_deploy.verification.saved_cache import saved_cache
from hermes_deploy.verification.saved_weights import SavedWeights

Float = npt.NDArray[np.float32]

POSITIONS = 512
"""About how many positions the stages are compared over."""

_CHATS = 8
_ROWS = 128


def chain(reference: Reference, onnx_path: Path, candidate: Candidate, positions: int = POSITIONS) -> Chain:
    """Runs the checkpoint and the saved weights in numpy and the graph in ONNX Runtime."""
    saved, cache = SavedWeights(onnx_path), saved_cache(onnx_path)
    sequences = _openings(reference, positions, candidate.longest)
    before = layer_states(reference.config, CheckpointWeights(reference.tensors), sequences)
    after = layer_states(reference.config, saved, sequences, keep=cache)
    by_layer = []
    ours = theirs = np.empty((0, 0), dtype=np.float32)
    for ours, theirs in zip(before, after, strict=True):
        by_layer.append(_relative(float(np.square(theirs - ours).sum()), float(np.square(ours).sum())))
    source, stored = reference.head().T, saved.linear("head")
    weights, kernels = _Apart(), _Apart()
    for rows, ran in _answers(candidate, sequences):
        middle = stored(theirs[rows])
        weights.add(ours[rows] @ source, middle)
        kernels.add(middle, ran)
    return Chain(
        positions=sum(map(len, sequences)),
        steps=(weights.step(WEIGHTS), kernels.step(KERNELS)),
        by_layer=tuple(by_layer),
        cache=None if cache is None else cache.worst,
    )


def _openings(reference: Reference, positions: int, longest: int) -> list[tuple[int, ...]]:
    """The same number of first tokens of chats spread over all."""
    count = min(_CHATS, len(reference.sequences))
    chosen = [reference.sequences[i * len(reference.sequences) // count] for i in range(count)]
    return [ids[: min(longest, -(-positions // count))] for ids in chosen]


def _answers(candidate: Candidate, sequences: list[tuple[int, ...]]) -> Iterator[tuple[slice, Float]]:
    starts = np.cumsum([0, *map(len, sequences)])
    for which, start, logits in candidate.answers(sequences):
        for top in range(0, len(logits), _ROWS):
            piece = logits[top : top + _ROWS]
            first = int(starts[which]) + start + top
            yield slice(first, first + len(piece)), piece


class _Apart:
    """How far logits are from others, added up."""

    def __init__(self) -> None:
        self._kl = self._error = self._power = 0.0
        self._positions = 0

    def add(self, before: Float, after: Float) -> None:
        self._kl += float(compare_rows(before, after, np.empty(0, np.int64)).kl.sum())
        self._positions += len(before)
        # a number that is added to all logits of a position changes no answer
        before = before - before.mean(axis=1, keepdims=True)
        after = after - after.mean(axis=1, keepdims=True)
        self._power += float(np.square(before).sum(dtype=np.float64))
        after -= before
        self._error += float(np.square(after).sum(dtype=np.float64))

    def step(self, stage: str) -> Step:
        kl = _worst_if_nan(self._kl / self._positions)
        return Step(stage, max(0.0, kl), _relative(self._error, self._power))


def _relative(error: float, power: float) -> float:
    return _worst_if_nan(float(np.sqrt(error / power)) if power else float(error != 0))


def _worst_if_nan(value: float) -> float:
    """NaN compares as neither more nor less: a stage that gives it would look perfect."""
    return float("inf") if np.isnan(value) else value
