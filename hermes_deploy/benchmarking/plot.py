"""The report as one SVG picture: tokens a second by number of streams, a line for each door, a panel a context.

Pure: a report in, text out. It stands for itself (colours of its own, readable on white and black), every
point says its number as a `title`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hermes_deploy.benchmarking.report import Report, Row
from hermes_deploy.benchmarking.speed import DECODE

_WIDTH, _PANEL, _TOP, _LEFT, _RIGHT, _BELOW = 640.0, 240.0, 44.0, 64.0, 120.0, 52.0
_COLOURS = {"in-process": "#2f6fde", "chat": "#c2571a", "ensemble": "#2e8b57"}
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#777}.title{font-size:14px}.axis{stroke:#999;stroke-width:.5}"
    ".line{fill:none;stroke-width:2}</style>"
)


def throughput_plot(report: Report) -> str:
    """Medians with the least and the greatest of the rounds."""
    rows = [row for row in report.rows if row.what.measure == DECODE and row.what.streams is not None]
    contexts = sorted({row.what.context or 0 for row in rows})
    height = _PANEL * max(1, len(contexts))
    title = f"{report.facts['artifact']['model']}: tokens per second by streams"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{_STYLE}'
    ]
    for number, context in enumerate(contexts):
        parts += _panel([row for row in rows if (row.what.context or 0) == context], context, number * _PANEL)
    if not contexts:
        parts.append(f'<text x="{_LEFT:g}" y="{_TOP:g}">no decode was measured</text>')
    return "".join([*parts, "</svg>\n"])


def _panel(rows: Sequence[Row], context: int, top: float) -> list[str]:
    places = sorted({row.what.streams or 0 for row in rows})
    highest = max(max(row.values) for row in rows) or 1.0
    floor, ceiling = top + _PANEL - _BELOW, top + _TOP

    def across(streams: int | None) -> float:
        # by order, not by number: 1, 4, 8, 16 stand equally far apart
        share = places.index(streams or 0) / max(1, len(places) - 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(speed: float) -> float:
        return floor - speed / highest * (floor - ceiling)

    parts = [f'<text class="title" x="{_LEFT:g}" y="{top + 20:g}">at {context:,} tokens of context</text>']
    for share in (0.0, 0.5, 1.0):
        y = up(share * highest)
        parts.append(f'<line class="axis" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{share * highest:,.0f}</text>')
    for streams in places:
        parts.append(f'<text x="{across(streams):.1f}" y="{floor + 16:.1f}" text-anchor="middle">{streams}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{floor + 34:.1f}" text-anchor="middle">streams</text>')
    for number, door in enumerate(dict.fromkeys(row.what.where for row in rows)):
        colour = _COLOURS.get(door, "#777777")
        line = sorted((row for row in rows if row.what.where == door), key=lambda row: row.what.streams or 0)
        points = " ".join(f"{across(row.what.streams):.1f},{up(row.median):.1f}" for row in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
        for row in line:
            x, low, high = across(row.what.streams), up(min(row.values)), up(max(row.values))
            says = f"{row.what}: {row.median:,.1f} tokens/s ({min(row.values):,.1f} to {max(row.values):,.1f})"
            parts.append(f'<line stroke="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            parts.append(
                f'<circle fill="{colour}" cx="{x:.1f}" cy="{up(row.median):.1f}" r="3.5">'
                f"<title>{escape(says)}</title></circle>"
            )
        y = ceiling + 6 + number * 18
        parts.append(f'<text x="{_WIDTH - _RIGHT + 14:g}" y="{y:.1f}" style="fill:{colour}">{escape(door)}</text>')
    return parts
