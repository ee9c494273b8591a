"""`hermes-deploy bench`: how fast an artifact answers, and what it holds in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hermes_deploy.benchmarking import Progress, Report


_WIDTH = 120
"""Columns that a row of the table takes."""


def bench(
    artifact: Annotated[Path, typer.Argument(help="Folder that build wrote.")],
    streams: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of answers at once.")] = "1,4,8,16",
    rounds: Annotated[int, typer.Option(help="Everything is measured so often, in turns.")] = 3,
    doors: Annotated[
        str,
        typer.Option(
            metavar="DOOR,…", help="in-process: the engine alone. chat, ensemble: a server that is started for it."
        ),
    ] = "in-process,chat,ensemble",
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything; what is left out is said. Better with --rounds 1.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw tokens per second by streams.")] = None,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write every number as JSON; - is standard output, for a table."),
    ] = None,
) -> None:
    """Measures prompt reading, tokens per second by streams and context, first tokens and memory.

    Starts a server of its own on free ports for the doors chat and ensemble, and stops it. What the
    artifact cannot do is left out, and the table says why. Nothing else should run on the machine.

    Example: hermes-deploy bench demo --streams 1,8 --json bench.json --plot bench.svg
    """
    from rich.console import Console

    from hermes_deploy.benchmarking import Options, throughput_plot
    from hermes_deploy.benchmarking import bench as run
    from hermes_deploy.errors import UsageError

    wanted = Options(
        _numbers("--streams", streams),
        rounds,
        tuple(door.strip() for door in doors.split(",")),  # type: ignore[misc]  # checked by Options
        quick,
    )
    files = {"--plot": plot, "--json": Path(json_to) if json_to not in (None, "-") else None}
    for flag, file in files.items():
        # said before the minutes that it takes, not after
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(
                f"{flag} is {file}, which is a folder or lies in none; give a file in a folder that is there"
            )
    with _Told(Console(file=sys.stderr, highlight=False)) as told:
        report = run(artifact, wanted, told.tell)
    document = json.dumps(report.document(), ensure_ascii=False, indent=2) + "\n"
    if files["--json"] is not None:
        files["--json"].write_text(document, encoding="utf-8")
    if plot is not None:
        plot.write_text(throughput_plot(report), encoding="utf-8")
    if json_to == "-":
        print(document, end="")
    else:
        _print(report)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    from hermes_deploy.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} is {text!r}; it takes whole numbers with commas between, such as 1,4,8") from None


class _Told:
    """Progress on stderr: one line that changes on a terminal, a line a step elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._bars.add_task("verifying the artifact", total=None)

    def __enter__(self) -> _Told:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, progress: Progress) -> None:
        self._bars.update(self._bar, completed=progress.done, total=progress.total, description=progress.what or "done")
        if not self._console.is_terminal and progress.what:
            self._console.print(f"{progress.done + 1}/{progress.total}  {progress.what}", markup=False, soft_wrap=True)


def _print(report: Report) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)  # a file has no edge to fold at
    machine, artifact = report.facts["machine"], report.facts["artifact"]
    console.print(
        f"{artifact['model']}, {artifact['recipe']}, {artifact['target']} "
        f"({artifact['max_context']:,} tokens x {artifact['max_slots']} slots, "
        f"manifest {artifact['manifest_sha256'][:12]})\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, load {machine['load']:g}; {report.facts['options']['rounds']} rounds",
        markup=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("measure", "where"):
        table.add_column(title, overflow="fold")
    for title in ("streams", "context", "median", "least", "greatest", "unit"):
        table.add_column(title, overflow="fold", justify="left" if title == "unit" else "right")
    for row in report.rows:
        what = row.what
        table.add_row(
            what.measure,
            what.where,
            "" if what.streams is None else str(what.streams),
            "" if what.context is None else f"{what.context:,}",
            *(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in _spread(row.values, row.median)),
            what.unit,
        )
    console.print(table)
    if report.left_out:
        console.print("left out:")
    for each in report.left_out:
        console.print(f"  {each.what}: {each.why}", markup=False, soft_wrap=True)


def _spread(values: tuple[float, ...], median: float) -> tuple[float, float, float]:
    return median, min(values), max(values)
