"""How far one model's answers are from another's, added up over pieces of text. Pure.

Takes logits of both models for the same positions, some rows at a time. A row is worked on while it
lies in a core's cache, in float32 with float64 sums, and rows are shared out over threads; of every
position only its KL is kept, of every chat eight sums and its worst position.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.sessions.ort_cpu import physical_cores
from hermes_deploy.verification.intervals import Interval, bootstrap

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

CONFIDENT = 0.5
"""Margin, in logits, of the reference's first choice over its second from which on it counts as sure."""

SHOWN_CHOICES = 4
"""First choices of each model that are kept of a worst position."""

_SUMS = 8
_POSITIONS, _KL, _SAME, _CONFIDENT, _CONFIDENT_SAME, _PREDICTED, _REFERENCE_LOSS, _CANDIDATE_LOSS = range(_SUMS)


@dataclass(frozen=True)
class Measures:
    """`kl`: mean KL(reference || candidate), nats. `top1`: share of positions with the same first
    choice; `top1_confident`: the same where the reference's best logit is more than CONFIDENT above
    its second (`confident_positions` of them; 1.0 where there is none). `perplexity_ratio`:
    candidate's / reference's on the same text, `reference_perplexity` the latter. `positions`: how
    many positions these are means of. `tensor_error`: see there."""

    kl: float
    top1: float
    top1_confident: float
    perplexity_ratio: float
    tensor_error: float
    positions: int
    confident_positions: int
    reference_perplexity: float


@dataclass(frozen=True)
class Rows:
    """What was found at n positions, in order: `kl` float64 [n], nats; `same` and `confident` bool
    [n]; losses float64 [m], nats, of the tokens that followed."""

    kl: Double
    same: npt.NDArray[np.bool_]
    confident: npt.NDArray[np.bool_]
    reference_loss: Double
    candidate_loss: Double


@dataclass(frozen=True)
class WorstPosition:
    """Of one chat the position with the largest `kl`. Choices are (token id, probability), best first."""

    position: int
    kl: float
    reference: tuple[tuple[int, float], ...]
    candidate: tuple[tuple[int, float], ...]


def compare_rows(reference: Float, candidate: Float, following: npt.NDArray[np.int64]) -> Rows:
    """Logits [n, vocab] of both; `following` [m], m <= n, are the tokens that came after the first m
    positions. What is not finite in either gives a KL that is not finite."""
    count = len(reference)
    table = np.empty((count, 5), dtype=np.float64)  # kl, same, margin, log of the sums minus the maxima
    workers = min(physical_cores(), count)

    def part(worker: int) -> None:
        power, apart = np.empty_like(reference[0]), np.empty_like(reference[0])
        # what is not finite is the caller's to report; numpy's warnings would come before its message
        with np.errstate(all="ignore"):
            for row in range(worker, count, workers):
                _compare_row(reference[row], candidate[row], power, apart, table[row])

    with ThreadPoolExecutor(workers) as pool:  # numpy lets go of the GIL inside its loops
        list(pool.map(part, range(workers)))
    at = np.arange(len(following))
    return Rows(
        kl=table[:, 0],
        same=table[:, 1] == 1,
        confident=table[:, 2] > CONFIDENT,
        reference_loss=table[: len(following), 3] - reference[at, following],
        candidate_loss=table[: len(following), 4] - candidate[at, following],
    )


def _compare_row(ours: Float, theirs: Float, power: Float, apart: Float, found: Double) -> None:
    """`found`: KL, 1 where the choices are equal, our margin, log of the sum of exp of both.
    `power` and `apart` are room to work in; `ours` is given back as it was."""
    choice = int(ours.argmax())
    best = ours[choice]
    ours[choice] = -np.inf
    margin = best - ours.max()
    ours[choice] = best
    their_choice = int(theirs.argmax())
    their_best = theirs[their_choice]
    np.subtract(theirs, their_best, out=power)
    np.exp(power, out=power)
    their_total = float(their_best) + math.log(power.sum(dtype=np.float64))
    np.subtract(ours, best, out=power)
    np.exp(power, out=power)
    share = float(power.sum(dtype=np.float64))
    total = float(best) + math.log(share)
    # sum of p (log p - log q) = E[ours - theirs] - (log total of ours - log total of theirs)
    np.subtract(ours, theirs, out=apart)
    apart -= best - their_best  # a common shift would eat the digits
    apart *= power
    expected = float(apart.sum(dtype=np.float64)) / share + float(best) - float(their_best)
    found[:] = expected - (total - their_total), choice == their_choice, margin, total, their_total


def first_choices(logits: Float, count: int = SHOWN_CHOICES) -> tuple[tuple[int, float], ...]:
    """(token id, probability) of the `count` largest of `logits` [vocab], best first; ties by id."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    share = np.exp(wide)
    order = np.argsort(-wide, kind="stable")[:count]
    return tuple((int(token), round(float(share[token] / share.sum()), 6)) for token in order)


class Comparison:
    """Add pieces of `chats` texts, then ask. Adds up in float64."""

    def __init__(self, chats: int) -> None:
        self._sums = np.zeros((chats, _SUMS), dtype=np.float64)
        self._kl: list[Double] = []
        self.worst: dict[int, WorstPosition] = {}

    def add(self, chat: int, start: int, reference: Float, candidate: Float, following: npt.NDArray[np.int64]) -> Rows:
        """Rows from position `start` of a chat; arguments as in `compare_rows`. All must be finite."""
        rows = compare_rows(reference, candidate, following)
        self._kl.append(rows.kl)
        self._sums[chat] += (
            len(rows.kl),
            rows.kl.sum(),
            rows.same.sum(),
            rows.confident.sum(),
            (rows.confident & rows.same).sum(),
            len(following),
            rows.reference_loss.sum(),
            rows.candidate_loss.sum(),
        )
        at = int(rows.kl.argmax())
        if chat not in self.worst or rows.kl[at] > self.worst[chat].kl:
            self.worst[chat] = WorstPosition(
                start + at, float(rows.kl[at]), first_choices(reference[at]), first_choices(candidate[at])
            )
        return rows

    def measures(self, tensor_error: float) -> Measures:
        """Raises ValueError when there is nothing to compare."""
        sums = self._sums.sum(axis=0)
        if not sums[_PREDICTED]:
            raise ValueError("nothing to compare: every text has fewer than two tokens")
        return Measures(
            **{name: float(value) for name, value in _ratios(sums).items()},
            tensor_error=tensor_error,
            positions=int(sums[_POSITIONS]),
            confident_positions=int(sums[_CONFIDENT]),
            reference_perplexity=math.exp(min(sums[_REFERENCE_LOSS] / sums[_PREDICTED], 700.0)),
        )

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of what `measures` gives, by name, from resampling whole chats."""
        return bootstrap(self._sums, _ratios)

    def kl_by_chat(self) -> dict[int, float]:
        """Mean KL of every chat that has positions."""
        return {chat: float(sums[_KL] / sums[_POSITIONS]) for chat, sums in enumerate(self._sums) if sums[_POSITIONS]}

    def kl_by_position(self) -> Double:
        """KL of every position, in the order of adding."""
        return np.concatenate(self._kl) if self._kl else np.empty(0)


def _ratios(sums: Double) -> dict[str, Double]:
    """The measures that are ratios of sums, for sums [..., _SUMS]. Rounding can bring the KL of equal
    models below zero."""
    confident, predicted = sums[..., _CONFIDENT], np.maximum(sums[..., _PREDICTED], 1)
    return {
        "kl": np.maximum(0.0, sums[..., _KL] / sums[..., _POSITIONS]),
        "top1": sums[..., _SAME] / sums[..., _POSITIONS],
        "top1_confident": np.where(confident > 0, sums[..., _CONFIDENT_SAME] / np.maximum(confident, 1), 1.0),
        "perplexity_ratio": np.exp(
            np.minimum((sums[..., _CANDIDATE_LOSS] - sums[..., _REFERENCE_LOSS]) / predicted, 700.0)
        ),
    }


def histogram(kl: Double) -> tuple[tuple[float, int], ...]:
    """(lower edge in nats, positions) of three bins a decade from 1e-6 on; the first bin holds all
    below, the last all above."""
    edges = 10.0 ** (np.arange(-18, 7) / 3)
    place = np.clip(np.searchsorted(edges, kl, side="right") - 1, 0, len(edges) - 1)
    counts = np.bincount(place, minlength=len(edges))
    return tuple((float(f"{edge:.3g}"), int(count)) for edge, count in zip(edges, counts, strict=True))
