"""Progress of a build on stderr: a live bar on a terminal, one line a finished stage elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from hermes_deploy.pipeline.events import StageEvent


class Progress:
    """`show` takes the events of `build_artifact`. Prints nothing when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self._bars: Bars | None = None
        self._bar = TaskID(0)
        self._unit = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def show(self, event: StageEvent) -> None:
        """A stage began, got on, or ended. Only notes and ends are told where there is no terminal."""
        if event.kind == "end":
            self._stop()
            took = " reused " if event.reused else f"{event.seconds:6.1f} s"
            self._console.print(f"{event.stage:<28} {took}  {event.detail}", markup=False, soft_wrap=True)
        elif event.kind == "note":
            self._console.print(f"{event.stage}: {event.detail}", markup=False, soft_wrap=True)
        elif self._console.is_terminal and not self._console.quiet:
            self._live(event)

    def _live(self, event: StageEvent) -> None:
        # a description shows markup: what comes from file names and TensorRT must not be read as such
        if event.kind == "begin" or self._bars is None:
            self._stop()
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
            self._bar = self._bars.add_task(escape(f"{event.stage}  {event.detail}"), total=None, count="")
            self._unit = ""
        if event.kind == "progress":
            if event.unit != self._unit:  # another thing is counted now: its speed says nothing of the last one's
                self._bars.reset(self._bar)
                self._unit = event.unit
            count = escape(f"{event.done:,} of {event.total:,} {event.unit}")
            self._bars.update(self._bar, completed=event.done, total=event.total, count=count)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
