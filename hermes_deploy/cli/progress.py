"""Progress of a build on stderr: a live line on a terminal, one line a finished stage elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.status import Status

from hermes_deploy.pipeline.events import StageEvent


class Progress:
    """`show` takes the events of `build_artifact`. Prints nothing when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def show(self, event: StageEvent) -> None:
        """A stage began (`seconds` None), or ended after `seconds`."""
        self._stop()
        if event.seconds is not None:
            line = f"{event.stage:<28} {event.seconds:6.1f} s  {event.detail}"
            self._console.print(line, markup=False, soft_wrap=True)
        elif self._console.is_terminal and not self._console.quiet:
            self._status = self._console.status(f"{event.stage}  {event.detail}")
            self._status.start()

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
