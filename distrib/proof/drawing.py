"""Overlaid curves as SVG, drawn without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 10.0, 10.0, 24.0
TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: its name, its colour's number and where it runs."""

    name: str
    colour: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A tick of an axis: its place and its text."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the template makes an ``<svg>`` of."""

    title: str
    lines: Sequence[Line]
    down: Sequence[Mark]
    """Ticks of the vertical axis."""
    along: Sequence[Mark]
    """Ticks of the horizontal axis."""


def draw(title: str, curves: Mapping[str, Sequence[float]], *, log: bool = False) -> Drawing | None:
    """Values by step, from step 1, of every curve; None where there is nothing to draw.

    On a logarithmic scale a value of 0 lies on the bottom; one that is not finite leaves a gap.
    """
    values = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    if log:
        values = [math.log10(value) for value in values if value > 0] or [-16.0]
    if not values:
        return None
    low, high = (math.floor(min(values)) - 1, math.ceil(max(values))) if log else _room(values)
    steps = max(len(curve) for curve in curves.values())
    lines = [
        Line(name=name, colour=number, path=_path(curve, low, high, steps=steps, log=log))
        for number, (name, curve) in enumerate(curves.items())
    ]
    return Drawing(title=title, lines=lines, down=_down(low, high, log=log), along=_along(steps))


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or abs(high) / 2 or 1.0
    return low - margin, high + margin


def _path(curve: Sequence[float], low: float, high: float, *, steps: int, log: bool) -> str:
    """Begins anew after a value that is not finite."""
    path, pen = [], "M"
    for step, value in enumerate(curve, start=1):
        if not math.isfinite(value):
            pen = "M"
            continue
        height = (math.log10(value) if value > 0 else low) if log else value
        path.append(f"{pen}{_x(step, steps):.1f} {_y(height, low, high):.1f}")
        pen = "L"
    return "".join(path)


def _down(low: float, high: float, *, log: bool) -> list[Mark]:
    if not log:
        at = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
        return [Mark(at=_y(value, low, high), text=f"{value:.3g}") for value in at]
    every = max(1, math.ceil((high - low) / TICKS))
    marks = [Mark(at=_y(p, low, high), text=f"1e{p}") for p in range(int(high), int(low), -every)]
    return [Mark(at=_y(low, low, high), text="0"), *marks]


def _along(steps: int) -> list[Mark]:
    every = max(1, math.ceil(steps / TICKS))
    return [Mark(at=_x(step, steps), text=str(step)) for step in range(1, steps + 1, every)]


def _x(step: int, steps: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(steps - 1, 1)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
