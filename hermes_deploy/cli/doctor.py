"""`hermes-deploy doctor`: what this machine can build and serve."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hermes_deploy.machine import Check


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Shows what this machine can build and serve, and what to install for the rest.

    Exit code 0 unless something installed is broken or contradicts itself.
    """
    from rich.console import Console
    from rich.table import Table

    from hermes_deploy.machine import examine

    examination = [*examine(), _kernels()]
    broken = [c for c in examination if c.state == "broken"]
    if as_json:
        print(json.dumps({"checks": [c.__dict__ for c in examination], "ok": not broken}, ensure_ascii=False))
    else:
        table = Table()
        for title in ("", "what", "found", "what to do"):
            table.add_column(title, overflow="fold")  # a command that is cut short cannot be run
        marks = {"ok": "ok", "missing": "-", "broken": "BROKEN"}
        for check in examination:
            table.add_row(marks[check.state], check.what, check.found, check.advice)
        Console(highlight=False).print(table, markup=False)
    if broken:
        raise typer.Exit(1)


def _kernels() -> Check:
    """Whether the operators of `kernels` can be used here."""
    from hermes_deploy import kernels

    if trouble := kernels.trouble():
        return Check("kernels", "missing", trouble, "not needed: ONNX Runtime's operators compute, slower")
    return Check("kernels", "ok", "AVX-512 VNNI, for the cpu target")
