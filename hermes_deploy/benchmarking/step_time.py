"""One decode step of two sessions against each other, in blocks that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.runtime.session import Session

SLOTS_RATIO = "two active slots of many against a two-slot engine"
LENGTH_RATIO = "decode step, long cache against short"
_SETTLING = 4
"""Steps of a block that are not counted: the threads of the other session spin for a moment after their last one."""


class Stepper:
    """Decodes the same position of `slots` of `session` again and again, behind `ids` [position].

    The step is the same one every time: only what else there is in the session differs.
    """

    def __init__(self, session: Session, slots: Sequence[int], ids: npt.NDArray[np.int64]) -> None:
        self._session, self._slots = session, list(slots)
        for slot in slots:
            for start in range(0, len(ids), session.prefill_chunk):
                session.prefill(slot, ids[start : start + session.prefill_chunk], start, 0)
        self._tokens = np.full(len(slots), int(ids[-1]), dtype=np.int64)
        self._positions = np.full(len(slots), len(ids), dtype=np.int64)

    def block(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after some that are not counted."""
        found = []
        for number in range(_SETTLING + steps):
            began = time.perf_counter()
            self._session.decode(self._slots, self._tokens, self._positions)
            if number >= _SETTLING:
                found.append(time.perf_counter() - began)
        return found


def compare(
    one: Stepper, other: Stepper, found: Collected, names: tuple[What, What, What], *, blocks: int = 6, steps: int = 20
) -> None:
    """Medians of both over `blocks` blocks in turns, and the ratio of `one` by `other`, under `names`."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(blocks):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].extend((one, other)[which].block(steps))
    first, second = statistics.median(times[0]), statistics.median(times[1])
    for name, value in zip(names, (first * 1e3, second * 1e3, first / second), strict=True):
        found.keep(name, value)


def compare_slots(
    many: Session, two: Session, active: tuple[int, int], ids: npt.NDArray[np.int64], found: Collected, rounds: int
) -> None:
    """The slots `active` of `many` against both of a session of two, behind `ids` [context]."""
    context, which = len(ids), f"slots {active[0]} and {active[1]} of {many.slots}"
    steppers = Stepper(many, active, ids), Stepper(two, (0, 1), ids)
    names = (
        What("decode step", "ms", which, 2, context),
        What(f"decode step, two-slot engine, beside {which}", "ms", "", 2, context),
        What(SLOTS_RATIO, "ratio", which, 2, context),
    )
    for _ in range(rounds):
        compare(*steppers, found, names)


def compare_lengths(
    long: Session, short: Session, streams: int, ids: npt.NDArray[np.int64], found: Collected, rounds: int
) -> None:
    """The same step in a session built for more context than another. `streams` slots, behind `ids` [context]."""
    context, slots = len(ids), range(streams)
    steppers = Stepper(long, slots, ids), Stepper(short, slots, ids)
    names = (
        What("decode step", "ms", f"max_context {long.max_context:,}", streams, context),
        What("decode step", "ms", f"max_context {short.max_context:,}", streams, context),
        What(LENGTH_RATIO, "ratio", f"{long.max_context:,} by {short.max_context:,}", streams, context),
    )
    for _ in range(rounds):
        compare(*steppers, found, names)
