"""Progress of a build on stderr: a live line on a terminal, one line a finished stage elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.markup import escape
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
        """A stage began, got on, or ended. Only the end is told where there is no terminal."""
        if event.kind == "end":
            self._stop()
            line = f"{event.stage:<28} {event.seconds:6.1f} s  {event.detail}"
            self._console.print(line, markup=False, soft_wrap=True)
        elif self._console.is_terminal and not self._console.quiet:
            # a status shows markup: what comes from file names and TensorRT must not be read as such
            text = escape(f"{event.stage}  {event.detail}")
            if self._status is None:
                self._status = self._console.status(text)
                self._status.start()
            else:
                self._status.update(text)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
