"""Logits to tokens: greedy, temperature, top-k, top-p, seeded. Pure: rows in, ids out.

The order is that of Hugging Face transformers: temperature, then top-k, then top-p on what is
left. A row's draw depends on nothing but its own logits, settings and random number, so the same
seed and prompt give the same answer whatever else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError

_CANDIDATES = 256
"""How many top tokens are sorted before a whole row is: nearly every top-p draw is decided in them."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 = greedy; `top_k` 0 = off; `top_p` 1 = off; `seed` None = a fresh one.

    Raises RequestError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise RequestError(f"temperature is {self.temperature}; allowed is 0 (greedy) to 100")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; allowed is 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; allowed is more than 0 and at most 1 (off)")

    def generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self.seed))


def pick(
    logits: npt.NDArray[np.float32], settings: Sequence[Sampling], generators: Sequence[np.random.Generator]
) -> npt.NDArray[np.int64]:
    """One token id [n] for each row of `logits` [n, vocab]; -1 where a row's largest logit is not finite.

    Takes one random number from the generator of each row that is not greedy.
    """
    usable = np.isfinite(logits.max(axis=1))  # max carries NaN through
    ids = np.where(usable, logits.argmax(axis=1), -1).astype(np.int64)
    drawn = [i for i, s in enumerate(settings) if s.temperature > 0 and usable[i]]
    if drawn:
        ids[drawn] = _draw(
            logits[drawn],
            np.array([settings[i].temperature for i in drawn], dtype=np.float32),
            np.array([settings[i].top_k for i in drawn], dtype=np.int64),
            np.array([settings[i].top_p for i in drawn], dtype=np.float64),
            np.array([generators[i].random() for i in drawn]),
        )
    return ids


def _draw(
    logits: npt.NDArray[np.float32],
    temperature: npt.NDArray[np.float32],
    top_k: npt.NDArray[np.int64],
    top_p: npt.NDArray[np.float64],
    uniform: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted / temperature[:, None])
    vocab = logits.shape[1]
    ids = np.empty(len(logits), dtype=np.int64)

    whole = (top_k == 0) & (top_p == 1)
    for row in np.flatnonzero(whole):
        ids[row] = _invert(np.cumsum(weights[row], dtype=np.float64), uniform[row])
    limited = np.flatnonzero(~whole)
    width = min(vocab, max(_CANDIDATES, int(top_k.max(initial=0))))
    while limited.size:
        kept, cumulative, order = _nucleus(weights[limited], top_k[limited], top_p[limited], width)
        # a row that keeps every candidate may have wanted more: look at it again, whole
        again = (kept == width) & (top_k[limited] != width) & (width < vocab)
        for i in np.flatnonzero(~again):
            ids[limited[i]] = order[i, _invert(cumulative[i, : kept[i]], uniform[limited[i]])]
        limited, width = limited[again], vocab
    return ids


def _nucleus(
    weights: npt.NDArray[np.float32], top_k: npt.NDArray[np.int64], top_p: npt.NDArray[np.float64], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Of the `width` heaviest tokens: how many stay [n], cumulative weights and ids [n, width], heaviest first."""
    top = np.sort(np.argpartition(weights, -width, axis=1)[:, -width:], axis=1)
    order = np.take_along_axis(top, np.argsort(-np.take_along_axis(weights, top, axis=1), axis=1, kind="stable"), 1)
    cumulative = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1, dtype=np.float64)
    by_k = np.where(top_k == 0, width, np.minimum(top_k, width))
    everything = weights.sum(axis=1, dtype=np.float64)
    rows = np.arange(len(weights))
    mass = np.where(top_k == 0, everything, cumulative[rows, by_k - 1])
    # the smallest set whose mass reaches top_p: one token more than those that fall short of it
    by_p = (cumulative < (top_p * mass)[:, None]).sum(axis=1) + 1
    return np.minimum(by_k, np.minimum(by_p, width)), cumulative, order


def _invert(cumulative: npt.NDArray[np.float64], uniform: float) -> int:
    """Index of the first entry over uniform * total."""
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(index, len(cumulative) - 1)
