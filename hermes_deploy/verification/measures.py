"""How far one model's answers are from another's, added up over pieces of text. Pure.

Takes logits of both models for the same positions, a few rows at a time; keeps four sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """`kl`: mean KL(reference || candidate), nats. `top1`: share of positions with the same first
    choice. `perplexity_ratio`: candidate's / reference's on the same text, `reference_perplexity`
    the latter. `positions`: how many positions these are means of. `tensor_error`: see there."""

    kl: float
    top1: float
    perplexity_ratio: float
    tensor_error: float
    positions: int
    reference_perplexity: float


class Comparison:
    """Add pieces, then ask for `measures`. Adds up in float64."""

    def __init__(self) -> None:
        self._kl = self._same = self._reference_loss = self._candidate_loss = 0.0
        self._positions = self._predicted = 0

    def add(self, reference: Float, candidate: Float, following: npt.NDArray[np.int64]) -> None:
        """Logits [n, vocab] of both; `following` [m], m <= n, are the tokens that came after the
        first m positions. Both arrays are overwritten with log probabilities. All must be finite."""
        same = reference.argmax(axis=1) == candidate.argmax(axis=1)
        _log_softmax(reference)
        _log_softmax(candidate)
        rows = np.arange(len(following))
        self._reference_loss -= float(reference[rows, following].sum(dtype=np.float64))
        self._candidate_loss -= float(candidate[rows, following].sum(dtype=np.float64))
        np.subtract(reference, candidate, out=candidate)
        np.exp(reference, out=reference)
        self._kl += float(np.einsum("nv,nv->n", reference, candidate).sum(dtype=np.float64))
        self._same += int(same.sum())
        self._positions += len(reference)
        self._predicted += len(following)

    def measures(self, tensor_error: float) -> Measures:
        if not self._predicted:
            raise ValueError("nothing to compare: every text has fewer than two tokens")
        difference = (self._candidate_loss - self._reference_loss) / self._predicted
        return Measures(
            kl=max(0.0, self._kl / self._positions),  # rounding can bring equal models below zero
            top1=self._same / self._positions,
            perplexity_ratio=math.exp(min(difference, 700.0)),
            tensor_error=tensor_error,
            positions=self._positions,
            reference_perplexity=math.exp(min(self._reference_loss / self._predicted, 700.0)),
        )


def _log_softmax(logits: Float) -> None:
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
