"""What the scripts of `scripts/bench` share: a benchmark in parts, of which `--only` names some.

Progress goes to stderr, the report to stdout and to the file of `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.report import LeftOut, Limit, Report, What, markdown
from hermes_deploy.benchmarking.run import Progress
from hermes_deploy.errors import HermesDeployError

Part = Callable[[], Report]


def add_only(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """The options `--only` and `--json`."""
    parser.add_argument("--only", default=",".join(names), help=f"of: {', '.join(names)}")
    parser.add_argument("--json", type=Path)


def chosen(parser: argparse.ArgumentParser, only: str, names: Iterable[str]) -> list[str]:
    """What `--only` names, in its order. Ends the script for a name that there is not."""
    found = only.split(",")
    if unknown := sorted(set(found) - set(names)):
        parser.error(f"--only names {', '.join(unknown)}; there are: {', '.join(names)}")
    return found


def run_parts(
    names: Iterable[str], parts: Mapping[str, Part], report: Report, limit_of: Callable[[What], Limit | None]
) -> tuple[Report, bool]:
    """`report` with the rows of the parts, and whether one failed: the others took minutes too.

    A part that raises NotMeasured is left out for that reason.
    """
    failed = False
    for name in names:
        say(f"{name} ...")
        try:
            report += parts[name]().limited(limit_of)
        except NotMeasured as why:
            report += Report({}, (), (LeftOut(name, str(why)),))
        except HermesDeployError as error:
            failed = True
            report += Report({}, (), (LeftOut(name, f"FAILED: {error}"),))
    return report, failed


def finish(report: Report, json_file: Path | None) -> bool:
    """Prints the table, writes the file; whether every row is within what it must reach."""
    print(f"{report.facts['machine']}\n{report.facts['versions']}\n\n{markdown(report)}")
    write_json(report, json_file)
    return not any(row.reached is False for row in report.rows)


def write_json(report: Report, file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report.document(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def tell(progress: Progress) -> None:
    say(f"  {progress.done}/{progress.total}  {progress.what}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
