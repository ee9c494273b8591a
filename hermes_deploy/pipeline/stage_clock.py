"""Times the stages of a build and tells about them. Knows no stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from hermes_deploy.pipeline.events import OnEvent, StageEvent


@dataclass
class RunningStage:
    """The stage that runs now. Set `reused` when there was nothing to do."""

    name: str
    on_event: OnEvent
    reused: bool = False

    def tell(self, done: int, total: int, unit: str) -> None:
        self.on_event(StageEvent(self.name, "progress", done=done, total=total, unit=unit))

    def note(self, words: str) -> None:
        self.on_event(StageEvent(self.name, "note", words))


@dataclass
class StageClock:
    """`seconds`: wall time by stage, in the order in which they ended; `reused`: those that the cache had."""

    on_event: OnEvent
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[RunningStage]:
        began = time.perf_counter()
        self.on_event(StageEvent(name, "begin", detail))
        running = RunningStage(name, self.on_event)
        yield running
        self.seconds[name] = time.perf_counter() - began
        if running.reused:
            self.reused.append(name)
        self.on_event(StageEvent(name, "end", detail, seconds=self.seconds[name], reused=running.reused))
