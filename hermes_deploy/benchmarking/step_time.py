"""One decode step, or one prompt, of two sessions against each other, in blocks that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.runtime.session import Session

SLOTS_RATIO = "two active slots of many against a two-slot engine"
LENGTH_RATIO = "decode step, long cache against short"
STEP_GAIN, READING_GAIN = "decode step, ONNX Runtime's operators by ours", "prompt, ONNX Runtime's operators by ours"
_SETTLING = 4
"""Steps of a block that are not counted: the threads of the other session spin for a moment after their last one."""


class Timed(Protocol):
    def block(self, steps: int) -> list[float]:
        """Seconds of each of `steps` equal calls, after some that are not counted."""


class Prompted:
    """Reads `ids` [n] into slot 0 of `session`, as if nothing of it were there, again and again."""

    def __init__(self, session: Session, ids: npt.NDArray[np.int64]) -> None:
        self._session, self._ids = session, ids

    def block(self, steps: int) -> list[float]:
        """Seconds of each of `steps` readings, after one that is not counted."""
        found = []
        for number in range(1 + steps):
            began = time.perf_counter()
            Stepper(self._session, (0,), self._ids)
            if number:
                found.append(time.perf_counter() - began)
        return found


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
    one: Timed, other: Timed, found: Collected, names: tuple[What, What, What], *, blocks: int = 6, steps: int = 20
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


def compare_operators(
    theirs: Session, ours: Session, ids: npt.NDArray[np.int64], found: Collected, rounds: int
) -> None:
    """The same steps of 1 and 8 streams behind 128 and 1,024 of `ids` [at least 1,024], and the same prompts of 512
    and 1,000, by ONNX Runtime's operators and by ours."""
    for _ in range(rounds):
        for streams, context in ((1, 128), (1, 1024), (8, 128), (8, 1024)):
            slots = range(streams)
            names = (
                What("decode step", "ms", "ONNX Runtime's operators", streams, context),
                What("decode step", "ms", "ours", streams, context),
                What(STEP_GAIN, "ratio", "", streams, context),
            )
            compare(Stepper(theirs, slots, ids[:context]), Stepper(ours, slots, ids[:context]), found, names)
        for length in (512, 1000):
            names = (
                What("prompt", "ms", f"{length:,} tokens, ONNX Runtime's operators"),
                What("prompt", "ms", f"{length:,} tokens, ours"),
                What(READING_GAIN, "ratio", f"{length:,} tokens"),
            )
            compare(Prompted(theirs, ids[:length]), Prompted(ours, ids[:length]), found, names, blocks=2, steps=2)
