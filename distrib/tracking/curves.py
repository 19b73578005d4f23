"""Curves for the page: any number of steps, few enough points to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from distrib.core import OWN
from distrib.tracking.bars import part_of

BUCKETS = 500
"""Of a long curve: each keeps its smallest and its largest value, so that no spike is lost."""

Points = list[tuple[float, float]]
Record = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart: raw points and, where they are noisy, a smoothed line."""

    title: str
    unit: str
    """How a value reads: ``number``, ``rate`` or ``bytes``."""
    points: Points
    smooth: Points
    dots: bool = False
    """True where each point is an event of its own (an evaluation) and gets a dot."""


def curves(records: Sequence[Record]) -> list[Curve]:
    """The charts there are numbers for: the run's, and last what the strategy measured of itself."""
    steps = [record for record in records if "loss" in record]
    found = [
        _noisy("loss", "number", _points(steps, _field("loss"))),
        *_evaluations(records),
        _plain("learning rate", "number", _points(steps, _field("lr"))),
        _noisy("gradient norm", "number", _points(steps, _field("grad_norm"))),
        _noisy("examples per second", "rate", _points(steps, lambda r: _rate(r, "examples"))),
        _noisy("tokens per second", "rate", _points(steps, lambda r: _rate(r, "tokens"))),
        _plain("peak memory of a rank", "bytes", _points(steps, _field("memory"))),
        *_measures(steps),
    ]
    return [curve for curve in found if curve.points]


def thin(points: Points, *, buckets: int = BUCKETS) -> Points:
    """At most two points a bucket, its lowest and its highest, and always the first and the last."""
    if len(points) <= 2 * buckets:
        return points
    size = len(points) / buckets
    kept: Points = [points[0]]
    for bucket in range(buckets):
        part = points[int(bucket * size) : int((bucket + 1) * size)]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return list(dict.fromkeys([*kept, points[-1]]))


def smoothed(points: Points) -> Points:
    """The mean of each point's neighbours on both sides: a fiftieth of the curve, five points at least."""
    reach = max(2, len(points) // 100)
    sums = [0.0, *accumulate(value for _, value in points)]
    line: Points = []
    for place, (step, _) in enumerate(points):
        begin, end = max(0, place - reach), min(len(points), place + reach + 1)
        line.append((step, float(f"{(sums[end] - sums[begin]) / (end - begin):.6g}")))
    return line


def _noisy(title: str, unit: str, points: Points) -> Curve:
    return Curve(title=title, unit=unit, points=thin(points), smooth=thin(smoothed(points)))


def _plain(title: str, unit: str, points: Points) -> Curve:
    return Curve(title=title, unit=unit, points=thin(points), smooth=[])


def _evaluations(records: Sequence[Record]) -> Iterable[Curve]:
    names = dict.fromkeys(name for record in records for name in record if name.startswith("eval/"))
    for name in names:
        points = thin(_points(records, _field(name)))
        title = f"held-out {name.removeprefix('eval/')}"
        yield Curve(title=title, unit="number", points=points, smooth=[], dots=True)


def _measures(steps: Sequence[Record]) -> Iterable[Curve]:
    """What the strategy says of its own working, such as staleness or bytes sent."""
    own = (name for record in steps for name in record if name.startswith(OWN) and part_of(name) is None)
    for name in dict.fromkeys(own):
        yield _plain(name.removeprefix(OWN).replace("_", " "), "number", _points(steps, _field(name)))


def _points(records: Sequence[Record], value: Callable[[Record], float | None]) -> Points:
    """Pairs of step and value, to six digits; what is missing or not finite leaves a gap."""
    found = ((record.get("step"), value(record)) for record in records)
    return [(x, float(f"{y:.6g}")) for x, y in found if x is not None and y is not None and math.isfinite(y)]


def _field(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.get(name)


def _rate(record: Record, what: str) -> float | None:
    count, seconds = record.get(what), record.get("seconds")
    return count / seconds if count is not None and seconds else None
