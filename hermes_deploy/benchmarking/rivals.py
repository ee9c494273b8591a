"""Ours beside other systems, by what was measured of each: ratios round by round, and which of them count. Pure.

A ratio counts only at a KL no worse than the other's, or at equal precision: whoever reads fewer bits is faster
for a reason that is no merit. A ratio is a speed: above 1, ours is faster (or takes less).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hermes_deploy.benchmarking.report import Collected, Report, Row, What

AGAINST = "ours against "


@dataclass(frozen=True)
class Precision:
    """`bits` of the weights in the layers and of the head; `block`: how many weights share a scale, None = a row,
    or none at all."""

    bits: int
    block: int | None
    head_bits: int
    head_block: int | None

    def __str__(self) -> str:
        return f"{_form(self.bits, self.block)}, head {_form(self.head_bits, self.head_block)}"


def _form(bits: int, block: int | None) -> str:
    return f"{bits} bit" + (f" in blocks of {block}" if block else "")


@dataclass(frozen=True)
class Quality:
    """`kl`: to the reference, nats; None where it was not measured."""

    precision: Precision
    kl: float | None


def counts(ours: Quality, theirs: Quality) -> tuple[bool, str]:
    """Whether a ratio between the two counts, and why or why not."""
    if ours.precision == theirs.precision:
        return True, f"equal precision ({ours.precision})"
    if ours.kl is None or theirs.kl is None:
        return False, f"other precision ({theirs.precision}), and KL was not measured"
    if ours.kl <= theirs.kl:
        return True, f"our KL is no worse ({ours.kl:.3g} against {theirs.kl:.3g})"
    return False, f"other precision ({theirs.precision}), and our KL is worse ({ours.kl:.3g} against {theirs.kl:.3g})"


def more_is_better(unit: str) -> bool:
    """Of rates; of times and sizes less is."""
    return unit.endswith("/s")


def add_ratios(found: Collected, ours: str, theirs: Sequence[str]) -> None:
    """A row `ours against …` for every measure that both have, of the values of the same round."""
    for what in [what for what in found.values if what.where == ours]:
        for other in theirs:
            counterpart = What(what.measure, what.unit, other, what.streams, what.context)
            if counterpart not in found.values:
                continue
            pair = (what, counterpart) if more_is_better(what.unit) else (counterpart, what)
            found.ratio(f"{AGAINST}{other}: {what.measure}", *pair, where=other, streams=what.streams)


def table(report: Report, systems: Sequence[str], counted: Mapping[str, bool]) -> str:
    """Markdown: a row a measure, a column a system, ours first; behind the others' numbers the median of the ratios.

    A ratio that does not count stands in brackets.
    """
    rows = {row.what: row for row in report.rows}
    measures = list(dict.fromkeys(_nameless(what) for what in rows if what.where in systems and what.unit != "ratio"))
    lines = [f"| | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for measure in measures:
        cells = [_cell(rows, measure, system, counted.get(system, False)) for system in systems]
        lines.append(f"| {measure}, {measure.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Mapping[What, Row], measure: What, system: str, counted: bool) -> str:
    row = rows.get(What(measure.measure, measure.unit, system, measure.streams, measure.context))
    if row is None:
        return "–"
    spread = f" ({min(row.values):,.3g} to {max(row.values):,.3g})" if len(row.values) > 1 else ""
    ratio = rows.get(What(f"{AGAINST}{system}: {measure.measure}", "ratio", system, measure.streams, measure.context))
    if ratio is None:
        return f"{row.median:,.3g}{spread}"
    said = f"{ratio.median:.2f}x"
    return f"{row.median:,.3g}{spread}: {f'**{said}**' if counted else f'[{said}]'}"


def _nameless(what: What) -> What:
    return What(what.measure, what.unit, "", what.streams, what.context)


def document(report: Report, systems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report as JSON values, with what is known of each system."""
    return {**report.document(), "systems": {name: dict(facts) for name, facts in systems.items()}}
