"""What a benchmark found, as frozen records and as JSON: a row a measure, with its value in every round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hermes_deploy.benchmarking.listening import NotMeasured

SCHEMA = 1


@dataclass(frozen=True)
class What:
    """Names a row. `where`: the door, or what else tells it from its like. `streams`: answers at once; `context`:
    tokens before the ones that are timed."""

    measure: str
    unit: str
    where: str = ""
    streams: int | None = None
    context: int | None = None

    def __str__(self) -> str:
        parts = [self.measure]
        parts += [f"{self.context:,} tokens"] if self.context is not None else []
        parts += [f"{self.streams} stream{'' if self.streams == 1 else 's'}"] if self.streams is not None else []
        parts += [self.where] if self.where else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Limit:
    """What a median must reach: at most `most`, at least `least`."""

    most: float | None = None
    least: float | None = None

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        return f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"


@dataclass(frozen=True)
class Row:
    """`values`: one a round, in the unit of `what`. `limit` None: it is told and judged by nobody."""

    what: What
    values: tuple[float, ...]
    limit: Limit | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        return None if self.limit is None else self.limit.holds(self.median)

    def document(self) -> dict[str, Any]:
        judged = {} if self.limit is None else {"limit": str(self.limit), "reached": self.reached}
        return {
            "measure": self.what.measure,
            "where": self.what.where or None,
            "streams": self.what.streams,
            "context": self.what.context,
            "unit": self.what.unit,
            "median": self.median,
            "least": min(self.values),
            "greatest": max(self.values),
            "rounds": list(self.values),
            **judged,
        }


@dataclass(frozen=True)
class LeftOut:
    """`what` was not measured, and `why`."""

    what: str
    why: str


@dataclass(frozen=True)
class Report:
    """`facts`: of machine, artifact and options, JSON values."""

    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]

    def limited(self, limit_of: Callable[[What], Limit | None]) -> Report:
        """The same report with what its rows must reach."""
        return replace(self, rows=tuple(replace(row, limit=limit_of(row.what) or row.limit) for row in self.rows))

    def __add__(self, other: Report) -> Report:
        """The rows of both, under the facts of this one."""
        return replace(self, rows=self.rows + other.rows, left_out=self.left_out + other.left_out)

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **self.facts,
            "rows": [row.document() for row in self.rows],
            "left_out": [{"what": each.what, "why": each.why} for each in self.left_out],
        }


@dataclass
class Collected:
    """Rows while they are found, in the order in which they were first told of."""

    values: dict[What, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def keep(self, what: What, value: float) -> None:
        self.values.setdefault(what, []).append(value)

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.setdefault(what, why)

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Runs `measure`; where it cannot be had, notes why."""
        try:
            measure()
        except NotMeasured as why:
            self.leave_out(what, str(why))

    def ratio(self, name: str, above: What, below: What, *, where: str, streams: int | None = None) -> None:
        """The row `above` by the row `below`, round by round; why not, where one of them was not measured in all."""
        what = What(name, "ratio", where, streams, above.context)
        ours, theirs = self.values.get(above, []), self.values.get(below, [])
        if ours and len(ours) == len(theirs):
            self.values[what] = [one / other for one, other in zip(ours, theirs, strict=True)]
        else:
            self.leave_out(
                str(what), f"it takes both sides in every round: {len(ours)} and {len(theirs)} were measured"
            )

    def report(self, facts: Mapping[str, Any]) -> Report:
        rows = tuple(Row(what, tuple(values)) for what, values in self.values.items())
        return Report(facts, rows, tuple(LeftOut(what, why) for what, why in self.left_out.items()))


def markdown(report: Report) -> str:
    """A row a measure, and what was left out below: for docs/benchmarks."""
    lines = ["| measure | median | least | greatest | unit | must reach |", "|---|---|---|---|---|---|"]
    for row in report.rows:
        reached = {None: "", True: f"{row.limit}", False: f"**{row.limit}: NOT REACHED**"}[row.reached]
        numbers = " | ".join(f"{value:,.4g}" for value in (row.median, min(row.values), max(row.values)))
        lines.append(f"| {row.what} | {numbers} | {row.what.unit} | {reached} |")
    reasons = [f"- left out: {each.what}: {each.why}" for each in report.left_out]
    return "\n".join([*lines, "", *reasons])
