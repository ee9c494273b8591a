"""Scales and static bounds for 8-bit integer weights and activations (SmoothQuant, arXiv:2211.10438).

One step size serves a whole activation tensor, so that a single large input takes the digits of all
others. s = max|x|^share / max|w|^(1-share) moves some of its size into the weights, whose columns
have steps of their own (see `equalize`). The share, and how much of the range the steps span, are
searched for the least error of the output with both roundings done as the target does them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

SHARES = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Candidates; at 0 no scale is folded at all."""

BOUNDS = (1.0, 0.85, 0.7)
"""Candidates for the share of max|x| beyond which inputs are clipped, tried with the best scale."""

MOST_ERROR = 0.002
"""Of a linear's output, as mean over positions of |error|^2 / |output|^2, that 8 bits may cost; over it
the linear is kept as it is. On SmolLM2-135M, whose every `down` has a few massive inputs, of 120 linears
0 / 1 / 11 / 26 / 33 / 35 kept (over 1 / 0.01 / 0.003 / 0.002 / 0.0012 / 0.001) gave a KL of
0.148 / 0.135 / 0.084 / 0.043 / 0.033 / 0.032 over 1,440 positions; `quantize` takes a quarter kept at most."""

_LEVELS = np.float32(127)
_POSITIONS = 384
_PEAKS = 16
"""Positions looked at: evenly spaced ones, and those that hold the largest inputs (the first tokens of
chats in many models), which must survive whatever they cost the others."""


@dataclass(frozen=True)
class Smoothing:
    """`scale` [K], geometric mean 1; `bound` of |x / scale|; `error` as MOST_ERROR counts it."""

    scale: Float
    bound: float
    error: float


def search_smoothing(columns: Float, inputs: Float, tie: Callable[[Float], Float]) -> Smoothing:
    """Of a linear: some of its `columns` [K, n], `inputs` [positions, K].

    `tie` [K] -> [K] makes a magnitude equal where scales must be equal. Ties go to the smaller share
    and the larger bound.
    """
    seen = _some(inputs)
    wanted = seen @ columns
    weak = np.float32(1e-6) * np.square(wanted).sum(axis=1).mean()
    energy = np.square(wanted).sum(axis=1) + weak + np.finfo(np.float32).tiny

    def tried(scale: Float, share: float) -> tuple[float, Smoothing]:
        weight = columns * scale[:, None]
        weight = _rounded(weight, np.abs(weight).max(axis=0))
        bound = share * float((highest / scale).max())
        off = np.square(_rounded(seen / scale, np.float32(bound)) @ weight - wanted).sum(axis=1)
        error = float((off / energy).mean())
        # the second term holds what the few positions with a huge output bring, the first all the others
        return error + float(off.sum() / energy.sum()), Smoothing(scale, bound, error)

    highest = np.abs(inputs).max(axis=0)
    peaks, reach = tie(highest), tie(np.abs(columns).max(axis=1))
    _, best = min((tried(_scale(peaks, reach, share), 1.0) for share in SHARES), key=_total)
    return min((tried(best.scale, share) for share in BOUNDS), key=_total)[1]


def _total(found: tuple[float, Smoothing]) -> float:
    return found[0]


def _some(inputs: Float) -> Float:
    even = np.arange(0, len(inputs), max(1, len(inputs) // _POSITIONS))
    high = np.argsort(-np.abs(inputs).max(axis=1), kind="stable")[:_PEAKS]
    return np.ascontiguousarray(inputs[np.union1d(even, high)])


def _scale(peaks: Float, reach: Float, share: float) -> Float:
    """[K]; what never moves counts as a thousandth of the mean."""
    if share == 0:
        return np.ones(len(peaks), dtype=np.float32)
    x, w = (np.log(np.maximum(a, np.float32(1e-3) * a.mean() + np.finfo(np.float32).tiny)) for a in (peaks, reach))
    exponent = np.float32(share) * x - np.float32(1 - share) * w
    scale: Float = np.exp(exponent - exponent.mean()).astype(np.float32)
    return scale


def _rounded(values: Float, largest: Float | np.float32) -> Float:
    """To 255 levels from -largest to largest and back; `largest` one for all, or one a column."""
    step = np.maximum(largest, np.finfo(np.float32).tiny) / _LEVELS
    codes = values / step
    np.rint(codes, out=codes)
    np.clip(codes, -_LEVELS, _LEVELS, out=codes)
    codes *= step
    return codes
