"""Curves over a logarithmic axis as one SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
LEGEND = 24
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points from left to right; curves of one name have one colour."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves over one pair of axes; ``along`` is logarithmic."""

    along: str
    up: str
    curves: Sequence[Curve]


def to_svg(panels: Sequence[Panel]) -> str:
    """The panels side by side, over one legend."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    body = [
        f'<g transform="translate({WIDTH * number},0)">{"".join(_panel(panel, colours))}</g>'
        for number, panel in enumerate(panels)
    ]
    every = WIDTH * len(panels) / max(len(names), 1)
    for number, (name, colour) in enumerate(colours.items()):
        x, y = number * every + 12, HEIGHT + LEGEND / 2
        body.append(f'<line x1="{x}" x2="{x + 16}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        body.append(f'<text x="{x + 21}" y="{y + 4}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT + LEGEND}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        + "\n".join(body)
        + "</svg>\n"
    )


def _panel(panel: Panel, colours: dict[str, str]) -> list[str]:
    points = [point for curve in panel.curves for point in curve.points]
    lows = [math.log10(min(x for x, _ in points)), min(y for _, y in points)]
    highs = [math.log10(max(x for x, _ in points)), max(y for _, y in points)]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - lows[0]) / ((highs[0] - lows[0]) or 1)
        height = (y - lows[1]) / ((highs[1] - lows[1]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for exponent in range(math.floor(lows[0]), math.ceil(highs[0]) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**exponent
            if lows[0] <= math.log10(value) <= highs[0]:
                x, _ = place(value, lows[1])
                drawn.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
                )
                drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{value:g}</text>')
    for number in range(6):
        value = lows[1] + (highs[1] - lows[1]) * number / 5
        _, y = place(10 ** lows[0], value)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for curve in panel.curves:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve.points))
        colour = colours[curve.name]
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{panel.along}</text>')
    drawn.append(f'<text x="{LEFT}" y="{TOP - 2}">{panel.up}</text>')
    return drawn
