"""Two small plots as inline SVG text: bars over a line of places, with labels. Pure.

Colours and letters come from the page's style (classes `bar`, `axis`, `mark`), so that they follow
its light or dark scheme. Every bar carries its number as a `title`, which browsers show and readers
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 16.0, 34.0


@dataclass(frozen=True)
class Bar:
    """`value` >= 0; `says` is the bar's own label."""

    value: float
    says: str


def bar_chart(
    bars: Sequence[Bar],
    *,
    label: str,
    ticks: Mapping[float, str],
    below: str,
    marks: Mapping[float, str] | None = None,
) -> str:
    """Bars from left to right. `ticks`: labels at places, where bar i spans i to i + 1; `below` stands
    under them; `marks`: vertical lines with a word. `label` says in words what is seen."""
    top = max((bar.value for bar in bars), default=0.0) or 1.0
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(bars))
    floor = _HEIGHT - _BOTTOM

    def across(place: float) -> float:
        return _LEFT + place * width

    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for share in (0.0, 0.5, 1.0):
        height = floor - share * (floor - _TOP)
        parts.append(
            f'<line class="axis" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6:g}" y="{height + 4:.1f}" text-anchor="end">{_short(share * top)}</text>')
    for index, bar in enumerate(bars):
        height = bar.value / top * (floor - _TOP)
        parts.append(
            f'<rect class="bar" x="{across(index) + width * 0.08:.1f}" y="{floor - height:.1f}" '
            f'width="{width * 0.84:.1f}" height="{height:.1f}"><title>{escape(bar.says)}</title></rect>'
        )
    for place, word in ticks.items():
        parts.append(f'<text x="{across(place):.1f}" y="{floor + 14:.1f}" text-anchor="middle">{escape(word)}</text>')
    for index, (place, word) in enumerate(sorted((marks or {}).items())):
        x = across(min(max(place, 0.0), len(bars)))
        side, apart = ("end", -5) if index == 0 and x > _WIDTH / 4 else ("start", 5)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 12:.1f}" y2="{floor:.1f}"/>')
        parts.append(
            f'<text class="word" x="{x + apart:.1f}" y="{_TOP - 4:.1f}" text-anchor="{side}">{escape(word)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 4:.1f}" text-anchor="middle">{escape(below)}</text></svg>')
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
