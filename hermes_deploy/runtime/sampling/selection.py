"""The few entries of a long array that matter, found without sorting it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_SORTED = 512
_SAMPLE = 63
_FIRST_SPREAD = 6.0


def reach(keys: Floats, weights: Floats, target: float) -> tuple[float, float]:
    """The key at which the `weights` [n] of the smallest `keys` [n] reach `target`, and what all smaller keys weigh.

    Where all together do not reach it, the largest key.
    """
    before = 0.0
    while len(keys) > _SORTED:
        # the middle one of a sample: each round leaves about half, and less of equal keys
        pivot = np.sort(keys[:: len(keys) // _SAMPLE])[_SAMPLE // 2]
        # by index: a mask that is true here and there is slow to select with
        smaller = (keys < pivot).nonzero()[0]
        inner = weights[smaller]
        mass = float(inner.sum())
        if len(smaller) and before + mass >= target:
            keys, weights = keys[smaller], inner
            continue
        larger = (keys > pivot).nonzero()[0]
        up_to_pivot = before + mass + float(weights[keys == pivot].sum())
        if up_to_pivot >= target or not len(larger):
            return float(pivot), before + mass
        before = up_to_pivot
        keys, weights = keys[larger], weights[larger]
    order = keys.argsort(kind="stable")
    running = weights[order].cumsum(dtype=np.float64)
    edge = keys[order[min(int(running.searchsorted(target - before)), len(keys) - 1)]]
    return float(edge), before + float(weights[keys < edge].sum())


def heaviest(row: npt.NDArray[np.float32], top: float, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest entries of `row` [vocab], largest first, of equal ones the lower id first.

    `top` is the largest and finite. Fewer come where the others are -inf.
    """
    spread = _FIRST_SPREAD
    lowest = float(np.finfo(np.float32).min)
    while True:
        floor = max(top - spread, lowest)
        ids = (row >= np.float32(floor)).nonzero()[0]
        if len(ids) >= count or floor == lowest:
            break
        spread *= 2
    values = row[ids]
    if len(ids) > max(count, _SORTED):
        edge = np.partition(values, len(values) - count)[len(values) - count]
        larger, ties = np.flatnonzero(values > edge), np.flatnonzero(values == edge)
        inner = np.sort(np.concatenate([larger, ties[: count - len(larger)]]))
        ids, values = ids[inner], values[inner]
    best: npt.NDArray[np.int64] = ids[(-values).argsort(kind="stable")[:count]]
    return best
