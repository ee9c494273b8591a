"""Systems beside each other as one SVG picture: a panel a measure, a bar a system, the best one full.

Pure: a report in, text out. It stands for itself (colours of its own, readable on white and black); every
bar says its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hermes_deploy.benchmarking.report import Report, Row, What
from hermes_deploy.benchmarking.rivals import more_is_better

_WIDTH, _BAR, _TITLE, _GAP, _LEFT, _RIGHT = 720.0, 18.0, 22.0, 14.0, 120.0, 190.0
_OURS, _THEIRS = "#2f6fde", "#9aa3ad"
_STYLE = "<style>text{font:12px sans-serif;fill:#777}.title{font-size:14px}</style>"


def bars(report: Report, systems: Sequence[str]) -> str:
    """Medians with the least and the greatest of the rounds. The first of `systems` has a colour of its own."""
    panels: dict[What, list[Row]] = {}
    for row in report.rows:
        if row.what.where in systems and row.what.unit != "ratio":
            what = What(row.what.measure, row.what.unit, "", row.what.streams, row.what.context)
            panels.setdefault(what, []).append(row)
    title = "Ours beside what people would pick instead"
    top, parts = _GAP, list[str]()
    for what, rows in panels.items():
        better = "more is better" if more_is_better(what.unit) else "less is better"
        parts.append(f'<text class="title" x="4" y="{top + 14:.1f}">{escape(f"{what}: {what.unit}, {better}")}</text>')
        top += _TITLE
        most = max(max(row.values) for row in rows) or 1.0
        for row in sorted(rows, key=lambda row: list(systems).index(row.what.where)):
            parts += _bar(row, most, top, _OURS if row.what.where == systems[0] else _THEIRS)
            top += _BAR
        top += _GAP
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH:g} {top:g}" role="img" aria-label="{escape(title)}" '
            f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{_STYLE}',
            *(parts or [f'<text x="4" y="{_GAP:g}">nothing was measured</text>']),
            "</svg>\n",
        ]
    )


def _bar(row: Row, most: float, top: float, colour: str) -> list[str]:
    room, middle = _WIDTH - _LEFT - _RIGHT, top + _BAR / 2
    end, low, high = (_LEFT + value / most * room for value in (row.median, min(row.values), max(row.values)))
    said = f"{row.median:,.3g} ({min(row.values):,.3g} to {max(row.values):,.3g})"
    return [
        f'<text x="{_LEFT - 6:g}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.what.where)}</text>',
        f'<rect fill="{colour}" x="{_LEFT:g}" y="{top + 2:.1f}" width="{end - _LEFT:.1f}" height="{_BAR - 4:g}"/>',
        f'<line stroke="#555" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text x="{_LEFT + room + 8:.1f}" y="{middle + 4:.1f}">{said}</text>',
    ]
