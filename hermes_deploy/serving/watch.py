"""Looks at a running server, twice a second: does it get on, and if not, is it past repair?

Three questions at each look: the engine's process, over its control socket, how its calls go; Triton, over HTTP,
whether it answers at all; and the ensemble's own steps, in turn, whether they step (pulse.py). What follows from the
answers is `judge`, which is pure. Dead and stopped processes are the guard's to find (guard.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.runtime.running_chat import Progress
from hermes_deploy.serving.control import ControlSilent, ask
from hermes_deploy.serving.probe import answers
from hermes_deploy.serving.pulse import Pulse

INTERVAL = 0.5
"""Seconds between two looks."""
_ANSWER_SECONDS = 1.0
"""That one question may take."""
_REPORTED_SILENCE = 1.5
"""Seconds: one missed answer is not yet told; a loaded machine misses one."""
_SLOWER = 3.0
"""A call that takes so many times the longest one before it stalls."""


@dataclass(frozen=True)
class Limits:
    """Seconds; see the settings of the same names."""

    stall_after: float
    silence_timeout: float
    engine_timeout: float


@dataclass(frozen=True)
class Look:
    """`problem`: None when all is well. `fatal`: only a new start helps."""

    problem: str | None
    fatal: bool
    engine: Progress | None


class Watch:
    """`control`: the control socket; `host`, `port`: Triton's HTTP."""

    def __init__(self, control: Path, host: str, port: int, limits: Limits) -> None:
        self._control = control
        self._address = (host, port)
        self._limits = limits
        self._pulse = Pulse(host, port)
        self._silent = 0.0
        """Seconds of waiting for answers that did not come; time in which this process slept does not count."""

    def look(self) -> Look:
        """Takes 4 s at most."""
        began = time.monotonic()
        engine, silence = None, None
        try:
            engine = ask(self._control, "status", timeout=_ANSWER_SECONDS)
        except ControlSilent as error:
            silence = str(error)
        if silence is None and not answers(*self._address, timeout=_ANSWER_SECONDS):
            silence = f"Triton did not answer within {_ANSWER_SECONDS:g} s"
        if silence is None:
            self._silent = 0.0
        else:
            self._silent += min(max(time.monotonic() - began, INTERVAL), 2 * _ANSWER_SECONDS)
        step = ("", 0.0) if silence is not None else self._pulse.take()
        return judge(engine, silence, self._silent, self._limits, step)


def judge(
    engine: Progress | None,
    silence: str | None,
    silent_seconds: float,
    limits: Limits,
    step: tuple[str, float] = ("", 0.0),
) -> Look:
    """`silence`: who did not answer at this look, None when both did; `silent_seconds`: for how long already.

    `step`: a step of the ensemble, and for how many seconds it has not stepped.
    """
    if engine is not None and engine.dead is not None:
        return Look(f"the engine died: {engine.dead}", True, engine)
    if silence is not None:
        fatal = silent_seconds > limits.silence_timeout
        told = f"{silence}; no answer for {silent_seconds:.0f} s"
        return Look(told if silent_seconds > _REPORTED_SILENCE else None, fatal, engine)
    if engine is not None and engine.in_call is not None:
        allowed = max(limits.stall_after, _SLOWER * engine.longest_call)
        if engine.in_call > allowed:
            told = f"a call of the engine has been going on for {engine.in_call:.0f} s; the longest before took "
            return Look(f"{told}{engine.longest_call:.2g} s", False, engine)
    model, stuck = step
    if stuck > limits.stall_after:
        return Look(f"{model} has done nothing for {stuck:.0f} s", stuck > limits.engine_timeout, engine)
    return Look(None, False, engine)
