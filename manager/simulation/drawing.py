"""A report as a picture: an SVG of three panels over time. Draws, and knows nothing of pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from manager.simulation.report import Report

WIDTH, PANEL_HEIGHT, GAP = 900.0, 150.0, 50.0
LEFT, RIGHT, TOP = 70.0, 190.0, 50.0
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
"""Told apart by most people who do not see every colour (Paul Tol's "bright")."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve, a value a moment."""

    name: str
    values: Sequence[float]


def draw(report: Report) -> str:
    """The whole SVG document."""
    moments = report.moments
    hours = [moment.seconds / 3600 for moment in moments]
    workers = [
        Line(f"{name}: machines", [m.active[index] for m in moments])
        for index, name in enumerate(report.pools)
    ]
    panels = [
        ("bundles", [Line("staged", [m.staged for m in moments]),
                     Line("running", [m.running for m in moments])]),
        ("workers", [*workers, Line("waiting for a machine", [m.pending for m in moments])]),
        ("cost", [Line("spent", [m.cost for m in moments])]),
    ]  # fmt: skip
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="white"/>',
        f'<text x="{LEFT:g}" y="28" font-size="15">{escape(report.description)}</text>',
    ]
    for index, (title, lines) in enumerate(panels):
        parts += _panel(title, hours, lines, TOP + index * (PANEL_HEIGHT + GAP))
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, hours: Sequence[float], lines: Sequence[Line], top: float) -> list[str]:
    right, bottom = WIDTH - RIGHT, top + PANEL_HEIGHT
    last = hours[-1] or 1.0
    highest = max((max(line.values, default=0) for line in lines), default=0) or 1.0
    parts = []
    for tick in _ticks(highest):
        y = bottom - tick / highest * PANEL_HEIGHT
        parts.append(f'<path d="M{LEFT:g} {y:.1f}H{right:g}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(last):
        x = LEFT + tick / last * (right - LEFT)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">{tick:g} h</text>'
        )
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(
            f"{LEFT + hour / last * (right - LEFT):.1f},"
            f"{bottom - value / highest * PANEL_HEIGHT:.1f}"
            for hour, value in zip(hours, line.values, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        y = top + 12 + 18 * number
        parts.append(f'<rect x="{right + 12:g}" y="{y - 9:g}" width="10" height="10" '
                     f'fill="{colour}"/>')  # fmt: skip
        parts.append(f'<text x="{right + 28:g}" y="{y:g}">{escape(line.name)}</text>')
    parts.append(f'<text x="{LEFT:g}" y="{top - 8:g}" font-weight="bold">{escape(title)}</text>')
    return parts


def _ticks(highest: float) -> list[float]:
    """Four to ten round numbers from 0 up."""
    step = float(10 ** floor(log10(highest)))
    for finer in (step / 5, step / 2, step):
        if highest / finer <= 10:
            step = finer
            break
    return [round(step * number, 10) for number in range(ceil(highest / step + 1e-9))]
