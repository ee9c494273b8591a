"""What is known of the server's health, and what follows from it. No sockets, no processes.

    ready   a token can be generated: one was, the engine answers, its calls come back, nothing drains
    alive   steps progress while there is work, and whoever repairs the server is at work itself

`alive` is about what a restart of the container would repair better than `serve` does: it is off from the moment
when a fault is seen until the server is started again. While it starts there is nothing that could progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hermes_deploy.runtime.running_chat import Progress

Phase = Literal["starting", "serving", "draining", "restarting", "stopped"]

HEARTBEAT = 8.0
"""Seconds after which whoever watches the server is itself given up: a look takes 4 s at most."""


@dataclass(frozen=True)
class Verdict:
    ready: bool
    alive: bool
    reasons: tuple[str, ...]
    """Why not, where one of them is off."""


class Health:
    """Written by the supervisor, read by whoever asks. `clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._phase: Phase = "starting"
        self._since = self._began = self._beat = clock()
        self._problem: str | None = None
        self._engine: Progress | None = None
        self._restarts = 0
        self._last_failure: str | None = None
        self._artifact: str | None = None

    def enter(self, phase: Phase) -> None:
        """A phase begins, and with it what was seen before is forgotten."""
        with self._changed:
            self._phase, self._problem, self._engine, self._artifact = phase, None, None, None
            self._since = self._beat = self._clock()
            self._changed.notify_all()

    def seen(self, problem: str | None, engine: Progress | None = None) -> None:
        """What a look at the running server showed; None when all is well."""
        with self._changed:
            self._beat = self._clock()
            self._problem, self._engine = problem, engine
            self._changed.notify_all()

    def artifact_changed(self, news: str) -> None:
        """The artifact is not what is running any more; that runs on, and somebody should know."""
        with self._changed:
            self._artifact = news

    def failed(self, why: str) -> None:
        """The server has to be started again. `why`: its first line is the reason, the rest its last words."""
        with self._changed:
            self._last_failure = why
            self._problem = why.partition("\n")[0]
            self._changed.notify_all()

    def restarted(self) -> None:
        with self._changed:
            self._restarts += 1

    @property
    def restarts(self) -> int:
        return self._restarts

    def verdict(self) -> Verdict:
        with self._changed:
            reasons = []
            if self._phase != "serving":
                reasons.append(_PHASES[self._phase])
            if self._problem is not None:
                reasons.append(self._problem)
            lost = self._phase == "serving" and self._clock() - self._beat > HEARTBEAT
            if lost:
                reasons.append(f"nobody has looked at the server for {self._clock() - self._beat:.0f} s")
            alive = self._problem is None and not lost and self._phase != "stopped"
            return Verdict(ready=not reasons, alive=alive, reasons=tuple(reasons))

    def wait_for_change(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)

    def document(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        verdict = self.verdict()
        with self._changed:
            now = self._clock()
            return {
                "ready": verdict.ready,
                "alive": verdict.alive,
                "reasons": list(verdict.reasons),
                "phase": self._phase,
                "phase_seconds": round(now - self._since, 1),
                "uptime_seconds": round(now - self._began, 1),
                "restarts": self._restarts,
                "last_failure": self._last_failure,
                "artifact_changed": self._artifact,
                "engine": asdict(self._engine) if self._engine is not None else None,
            }


_PHASES: dict[Phase, str] = {
    "starting": "the server is starting: no token was generated yet",
    "restarting": "the server failed and is being started again",
    "draining": "the server is draining: it takes no new requests",
    "stopped": "the server has stopped",
}
