"""From one row of logits to the tokens that may be drawn and their weights, and from a random number to one of them.

Order and arithmetic are those of Hugging Face transformers' warpers, in the order of its `generate`:

    temperature -> top_k -> top_p -> min_p -> typical_p

Equal logits at the edge are treated as there: top_k and typical_p keep all of them, top_p keeps the
higher ids. The result is a function of the row and the settings alone, to the last bit: every sum runs
over arrays that this row alone makes.

A row is not sorted. A token that lies `s` temperatures under the largest weighs exp(-s) of it, so what
is left out under a floor is bounded; only where the bound does not decide is the whole row weighed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.selection import reach

_LOWEST = float(np.finfo(np.float32).min)
_LEFT_OUT = 1e-3
"""What all tokens under the first floor may weigh together, the likeliest token being 1."""
_NEVER_DRAWN = 37.0
"""exp(-37) < 2^-53: a random number cannot tell whether tokens that weigh less together are there."""
_SORTED = 2048
"""Most tokens that are sorted; above, selecting is faster."""
_NARROWED = 192
"""Fewer tokens are sorted faster than narrowed down."""
_BLOCK = 256


@dataclass(frozen=True)
class Weighed:
    """Tokens of one row, in any order.

    `logs` [n]: logit / temperature under that of the likeliest token; `weights` [n]: exp of it.
    `missing`: at most what the tokens weigh together that are not here.
    """

    ids: npt.NDArray[np.int64]
    logs: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    missing: float

    def only(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Weighed:
        """Those of them, all others being excluded from now on."""
        return Weighed(self.ids[which], self.logs[which], self.weights[which], 0.0)


def distribution(
    row: npt.NDArray[np.float32], top: float, sampling: Sampling
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.floating]]:
    """Token ids [n] and their weights [n], which need not sum to 1; ids None: all tokens of the row, in order.

    `row` [vocab], contiguous, holds no NaN; `top` is its largest value and finite. `temperature` is above 0.
    """
    limited = 0 < sampling.top_k < len(row) or sampling.top_p < 1
    if not limited and sampling.min_p == 0 and sampling.typical_p == 1:
        return None, _whole(row, top, sampling.temperature)
    kept = _weigh(row, top, sampling)
    if 0 < sampling.top_k < len(row):
        kept = _largest(kept, sampling.top_k)
    if sampling.top_p < 1:
        kept = _most(kept, row, top, sampling)
    if sampling.min_p > 0:
        kept = kept.only(kept.weights >= sampling.min_p)
    if sampling.typical_p < 1:
        kept = _typical(kept, sampling.typical_p)
    return kept.ids, kept.weights


def draw(weights: npt.NDArray[np.floating], uniform: float) -> int:
    """The index at which the running sum of `weights` [n] passes `uniform` [0, 1) of the whole."""
    if len(weights) > 16 * _BLOCK:  # first the block, then within it: a running sum over a vocabulary is slow
        sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
        block, rest = _pass(np.cumsum(sums, dtype=np.float64), uniform)
        first = block * _BLOCK
        return first + _pass(np.cumsum(weights[first : first + _BLOCK], dtype=np.float64), rest)[0]
    return _pass(np.cumsum(weights, dtype=np.float64), uniform)[0]


def _pass(running: npt.NDArray[np.float64], uniform: float) -> tuple[int, float]:
    """Index of the entry in which `uniform` of the total lies, and where in it [0, 1)."""
    total = float(running[-1])
    index = int(running.searchsorted(uniform * total, side="right"))
    if index == len(running):  # rounded up to the total: the last that weighs anything
        index = int(running.searchsorted(total, side="left"))
    before = float(running[index - 1]) if index else 0.0
    share = (uniform * total - before) / (float(running[index]) - before)
    return index, min(max(share, 0.0), 1 - 2**-53)


def _weigh(row: npt.NDArray[np.float32], top: float, sampling: Sampling) -> Weighed:
    """Every token that the settings may keep, as far as can be told without weighing all."""
    temperature = sampling.temperature
    never = math.log(len(row)) + _NEVER_DRAWN
    spread = never
    if 0 < sampling.top_k < len(row) or sampling.top_p < 1:
        spread = math.log(len(row) / _LEFT_OUT)
    elif sampling.min_p > 0:
        spread = min(never, 1e-3 - math.log(sampling.min_p))  # a little more, so that rounding drops none
    while True:
        floor = np.float32(max(top - spread * temperature, _LOWEST))  # never -inf: such a token may not come
        ids = np.flatnonzero(row >= floor)
        if len(ids) >= min(sampling.top_k, len(row)) or spread >= never:
            break
        spread = min(2 * spread, never)
    logs = _under(row[ids], top, temperature)
    under = math.exp(min(0.0, (float(floor) - top) / temperature))
    return Weighed(ids, logs, np.exp(logs), (len(row) - len(ids)) * under)


def _under(values: npt.NDArray[np.float32], top: float, temperature: float) -> npt.NDArray[np.float64]:
    """(value - top) / temperature [n], divided in float32 first: what transformers rounds is rounded here."""
    divisor = np.float32(temperature)
    peak = float(np.float32(top) / divisor) if divisor else math.inf
    if not math.isfinite(peak):  # more than float32 holds
        return (values.astype(np.float64) - top) / temperature
    # a 1 is common and changes nothing
    return (values if divisor == 1 else values / divisor).astype(np.float64) - peak


def _whole(row: npt.NDArray[np.float32], top: float, temperature: float) -> npt.NDArray[np.floating]:
    """Weights of all tokens [vocab], the likeliest being 1."""
    divisor = np.float32(temperature)
    peak = np.float32(top) / divisor if divisor else np.float32(np.inf)
    if not np.isfinite(peak):
        return np.exp(_under(row, top, temperature))
    logs = row - peak if divisor == 1 else row / divisor
    if divisor != 1:
        logs -= peak
    weights: npt.NDArray[np.float32] = np.exp(logs, out=logs)
    return weights


def _largest(kept: Weighed, top_k: int) -> Weighed:
    """The `top_k` heaviest, and those as heavy as the last of them."""
    place = len(kept.ids) - top_k
    if place <= 0:
        return replace(kept, missing=0.0)
    return kept.only(kept.logs >= np.partition(kept.logs, place)[place])


def _most(kept: Weighed, row: npt.NDArray[np.float32], top: float, sampling: Sampling) -> Weighed:
    """The nucleus: the fewest, heaviest first, that reach `top_p` of the mass (Holtzman et al. 2020)."""
    mass = float(kept.weights.sum())
    nucleus = _nucleus(kept, sampling.top_p * mass, sampling.top_p * (mass + kept.missing))
    if nucleus is not None:
        return nucleus
    everything = _whole(row, top, sampling.temperature)
    total = float(everything.sum())
    # those lighter than half an even share of the rest are not in it, even together
    share = 0.5 * (1 - sampling.top_p) * total / len(row)
    ids = np.flatnonzero(everything >= max(share, np.finfo(np.float32).tiny))
    logs = _under(row[ids], top, sampling.temperature)
    exact = _nucleus(Weighed(ids, logs, np.exp(logs), 0.0), sampling.top_p * total, sampling.top_p * total)
    assert exact is not None, "with the mass known there is an answer"
    return exact


def _nucleus(kept: Weighed, low: float, high: float) -> Weighed | None:
    """The fewest, heaviest first, that weigh `low` to `high`; None where these are not one answer."""
    mass = float(kept.weights.sum())
    # tokens that are lighter than an even share of what is over are not needed, even together
    while len(kept.ids) > _NARROWED and mass > high:
        needed = np.flatnonzero(kept.weights >= 0.999 * (mass - high) / len(kept.ids))
        if 2 * len(needed) > len(kept.ids):
            break
        kept = kept.only(needed)
        mass = float(kept.weights.sum())
    if len(kept.ids) > _SORTED:
        return _nucleus_of_many(kept, low) if low == high else None
    order = kept.logs.argsort(kind="stable")[::-1]
    running = kept.weights[order].cumsum()
    last = int(running.searchsorted(low))
    if low != high and last != int(running.searchsorted(high)):
        return None
    return kept.only(order[: last + 1])


def _nucleus_of_many(kept: Weighed, target: float) -> Weighed:
    edge, before = reach(-kept.logs, kept.weights, target)
    heavier, ties = np.flatnonzero(kept.logs > -edge), np.flatnonzero(kept.logs == -edge)
    each = float(kept.weights[ties[0]])
    wanted = max(1, math.ceil((target - before) / each)) if each > 0 else len(ties)
    return kept.only(np.concatenate([heavier, ties[-wanted:]]))


def _typical(kept: Weighed, mass: float) -> Weighed:
    """Meister et al. 2023: those whose surprise is nearest to the entropy, until they reach `mass`."""
    total = kept.weights.sum()
    probabilities = kept.weights / total
    surprise = np.log(total) - kept.logs
    distance = np.abs(surprise - (probabilities * surprise).sum())
    edge, _ = reach(distance, probabilities, mass)
    return kept.only(distance <= edge)
