"""From one row of logits to the tokens that may be drawn and their weights, and from a random number to one of them.

Order and arithmetic are those of Hugging Face transformers' warpers, in the order of its `generate`:

    temperature -> top_k -> top_p -> min_p -> typical_p

Equal logits at the edge: top_k and typical_p keep all of them, as there; top_p keeps the lower ids, which
there is left to the sort. The result is a function of the row and the settings alone, to the last bit:
every sum runs over arrays that this row alone makes.

A row is not sorted. A token that lies `s` temperatures under the largest weighs exp(-s) of it, so what lies
under a floor is bounded: of `top_p` alone `draw_near` decides nearly every pick by that, without weighing
the whole row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.sampling.selection import reach
from hermes_deploy.runtime.sampling.settings import Sampling

Weights = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_LOWEST = float(np.finfo(np.float32).min)
_LIGHTEST = float(np.finfo(np.float32).tiny)
_LEFT_OUT = 1e-2
"""What all tokens under a floor may weigh together, the likeliest token being 1."""
_NEVER_DRAWN = 37.0
"""exp(-37) < 2^-53: a random number cannot tell whether tokens that weigh less together are there."""
_FIRST_SPREAD = 6.0
"""How many temperatures under the likeliest top_k tokens are looked for first."""
_FEW = 128
"""So many tokens over the first floor are taken at once."""
_FIRST_FLOOR = 1e-3
"""Weight, the likeliest being 1, over which the nucleus is looked for first where the whole row is weighed."""
_SORTED = 2048
"""Most tokens that are sorted; above, selecting is faster."""
_NARROWED = 192
"""Fewer tokens are sorted faster than narrowed down."""
_BLOCK = 256


class Weighed(NamedTuple):
    """Tokens of one row.

    `logs` [n]: logit / temperature less that of the likeliest token; `weights` [n]: exp of it.
    """

    ids: npt.NDArray[np.int64]
    logs: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    def only(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Weighed:
        return Weighed(self.ids[which], self.logs[which], self.weights[which])


def distribution(
    row: npt.NDArray[np.float32], top: float, sampling: Sampling
) -> tuple[npt.NDArray[np.int64] | None, Weights]:
    """Token ids [n] and their weights [n], which need not sum to 1; ids None: all tokens of the row, in order.

    `row` [vocab], contiguous, holds no NaN; `top` is its largest value and finite. `temperature` is above 0.
    """
    by_count = 0 < sampling.top_k < len(row)
    if by_count:
        kept = _largest(row, top, sampling)
        if sampling.top_p < 1:
            kept = _nucleus(kept, sampling.top_p * float(kept.weights.sum()))
    elif sampling.top_p < 1:
        kept = _nucleus_of_all(row, top, sampling)
    elif sampling.min_p == 0 and sampling.typical_p == 1:
        return None, _weigh_all(row, top, sampling.temperature)
    else:
        never = _never(row)
        # of min_p a little more, so that rounding drops none
        spread = min(never, 1e-3 - math.log(sampling.min_p)) if sampling.min_p > 0 else never
        near = row >= _floor(top, sampling.temperature, spread)
        kept = _weigh(row, top, sampling.temperature, near.nonzero()[0])
    if sampling.min_p > 0:
        kept = kept.only(kept.weights >= sampling.min_p)
    if sampling.typical_p < 1:
        kept = _typical(kept, sampling.typical_p)
    return kept.ids, kept.weights


def draw(weights: Weights, uniform: float) -> int:
    """The index at which the running sum of `weights` [n] passes `uniform` [0, 1) of the whole."""
    if len(weights) <= 16 * _BLOCK:
        return _pass(weights.cumsum(dtype=np.float64), uniform)[0]
    # first the block, then within it: a running sum over a vocabulary is slow
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    block, rest = _pass(sums.cumsum(dtype=np.float64), uniform)
    first = block * _BLOCK
    return first + _pass(weights[first : first + _BLOCK].cumsum(dtype=np.float64), rest)[0]


def draw_near(row: npt.NDArray[np.float32], top: float, sampling: Sampling, uniform: float) -> int | None:
    """The token that `distribution` and `draw` give, where the tokens near the likeliest decide it, else None.

    What the others weigh is bounded by how many there are. The bounds give a smallest and a largest nucleus;
    where `uniform` falls on the same token in both, it does so in the true one. Takes the arguments of
    `distribution`, of which `top_p` is the only limit.
    """
    temperature, vocab = sampling.temperature, len(row)
    spread = math.log(vocab / _LEFT_OUT)
    near = row >= _floor(top, temperature, spread)
    count = int(np.count_nonzero(near))
    missing = (vocab - count) * _LEFT_OUT / vocab
    if count > _FEW:  # finding them one by one is what takes time: those that weigh little together are only counted
        spread = math.log(count / _LEFT_OUT)
        near = row >= _floor(top, temperature, spread)
        if np.count_nonzero(near) > _SORTED:
            return None
        missing += _LEFT_OUT
    # quotients are rounded to float32: what is under the floor may weigh a little more, with huge logits anything
    missing *= math.exp(min(700.0, (abs(top) + spread * temperature) * 2**-23 / temperature))
    kept = _weigh(row, top, temperature, near.nonzero()[0])
    order = (-kept.logs).argsort(kind="stable")
    running = kept.weights[order].cumsum()
    mass = float(running[-1])
    least, most = running.searchsorted((sampling.top_p * mass, sampling.top_p * (mass + missing)))
    if most == len(running):
        return None
    first, last = running.searchsorted((uniform * running[least], uniform * running[most]), side="right")
    return int(kept.ids[order[first]]) if first == last <= least else None


def _pass(running: npt.NDArray[np.float64], uniform: float) -> tuple[int, float]:
    """Index of the entry in which `uniform` of the total lies, and where in it [0, 1)."""
    total = float(running[-1])
    index = int(running.searchsorted(uniform * total, side="right"))
    if index == len(running):  # rounded up to the total: the last that weighs anything
        index = int(running.searchsorted(total))
    before = float(running[index - 1]) if index else 0.0
    share = (uniform * total - before) / (float(running[index]) - before)
    return index, min(max(share, 0.0), 1 - 2**-53)


def _never(row: npt.NDArray[np.float32]) -> float:
    """How many temperatures under the likeliest no random number reaches."""
    return math.log(len(row)) + _NEVER_DRAWN


def _floor(top: float, temperature: float, spread: float) -> np.float32:
    """The logit `spread` temperatures under `top`; never -inf: a token of that may not come."""
    return np.float32(max(top - spread * temperature, _LOWEST))


def _peak(top: float, temperature: float) -> float:
    """`top` / temperature in float32; not finite where that cannot hold it."""
    divisor = np.float32(temperature)
    return float(np.float32(top) / divisor) if divisor > 0 else math.inf


def _weigh(row: npt.NDArray[np.float32], top: float, temperature: float, ids: npt.NDArray[np.int64]) -> Weighed:
    values, peak = row[ids], _peak(top, temperature)
    if math.isfinite(peak):
        # divided in float32: what transformers rounds is rounded here
        scaled = values if temperature == 1 else values / np.float32(temperature)
        logs = np.subtract(scaled, peak, dtype=np.float64)
    else:
        logs = (values.astype(np.float64) - top) / temperature
    return Weighed(ids, logs, np.exp(logs))


def _weigh_all(row: npt.NDArray[np.float32], top: float, temperature: float) -> npt.NDArray[np.float32]:
    """The weights of all tokens [vocab], the likeliest being 1; close enough in float32, and twice as fast."""
    peak = _peak(top, temperature)
    if not math.isfinite(peak):
        logs = ((row.astype(np.float64) - top) / temperature).astype(np.float32)
    elif temperature == 1:
        logs = row - np.float32(peak)
    else:
        logs = row / np.float32(temperature)
        logs -= np.float32(peak)
    np.exp(logs, out=logs)
    return logs


def _largest(row: npt.NDArray[np.float32], top: float, sampling: Sampling) -> Weighed:
    """The `top_k` heaviest, and those as heavy as the last of them."""
    spread, never = _FIRST_SPREAD, _never(row)
    near = row >= _floor(top, sampling.temperature, spread)
    while np.count_nonzero(near) < sampling.top_k and spread < never:
        spread = min(1.4 * spread, never)
        near = row >= _floor(top, sampling.temperature, spread)
    kept = _weigh(row, top, sampling.temperature, near.nonzero()[0])
    place = len(kept.ids) - sampling.top_k
    return kept.only(kept.logs >= np.partition(kept.logs, place)[place]) if place > 0 else kept


def _nucleus_of_all(row: npt.NDArray[np.float32], top: float, sampling: Sampling) -> Weighed:
    """The nucleus (Holtzman et al. 2020), by the mass of the whole row."""
    temperature = sampling.temperature
    weights = _weigh_all(row, top, temperature)
    total = float(weights.sum())
    target = sampling.top_p * total
    # those lighter than half an even share of the rest are not in it, even together
    share = max(0.5 * (1 - sampling.top_p) * total / len(row), _LIGHTEST)
    floor = max(_FIRST_FLOOR, share)
    ids = (weights >= floor).nonzero()[0]
    while floor > share and float(weights[ids].sum()) < 1.000001 * target:
        floor = max(floor * _FIRST_FLOOR, share)
        ids = (weights >= floor).nonzero()[0]
    if len(ids) > _SORTED:
        return _ordered(_weigh(row, top, temperature, ids[_fewest(-row[ids], weights[ids], target)]))
    return _nucleus(_weigh(row, top, temperature, ids), target)


def _nucleus(kept: Weighed, target: float) -> Weighed:
    """The fewest, heaviest first, that weigh `target`; they come in that order unless they are very many."""
    mass = float(kept.weights.sum())
    # tokens that are lighter than an even share of what is over are not needed, even together
    while len(kept.ids) > _NARROWED and mass > target:
        needed = (kept.weights >= 0.999 * (mass - target) / len(kept.ids)).nonzero()[0]
        if 2 * len(needed) > len(kept.ids):
            break
        kept = kept.only(needed)
        mass = float(kept.weights.sum())
    if len(kept.ids) > _SORTED:
        return _ordered(kept.only(_fewest(-kept.logs, kept.weights, target)))
    kept = _ordered(kept)
    last = int(kept.weights.cumsum().searchsorted(target))
    return kept.only(slice(last + 1))


def _ordered(kept: Weighed) -> Weighed:
    """Heaviest first, as `draw_near` has them too, who knows of no more than these."""
    return kept.only((-kept.logs).argsort(kind="stable")) if len(kept.ids) <= _SORTED else kept


def _fewest(keys: Weights, weights: Weights, target: float) -> npt.NDArray[np.int64]:
    """Indices of the fewest, smallest keys [n] first, of equal ones the first, whose weights [n] reach `target`."""
    edge, before = reach(keys, weights, target)
    smaller, ties = (keys < edge).nonzero()[0], (keys == edge).nonzero()[0]
    each = float(weights[ties[0]])
    wanted = max(1, math.ceil((target - before) / each)) if each > 0 else len(ties)
    return np.concatenate([smaller, ties[:wanted]])


def _typical(kept: Weighed, mass: float) -> Weighed:
    """Meister et al. 2023: those whose surprise is nearest to the entropy, until they reach `mass`."""
    total = kept.weights.sum()
    probabilities = kept.weights / total
    surprise = np.log(total) - kept.logs
    distance = np.abs(surprise - (probabilities * surprise).sum())
    edge, _ = reach(distance, probabilities, mass)
    return kept.only(distance <= edge)
