"""Parallel coordinates: an upright axis for each setting and for the objective, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distrib.sweeps.results import Objective, Result, best
from distrib.sweeps.space import Dimension, Scale, Space, Value, read
from distrib.tracking.text import number_text

TOP, HEIGHT, MARGIN = 46.0, 300.0, 110.0
"""Above the axes; their length; beside the first and the last."""
WIDTH, NARROWEST = 1160.0, 150.0
"""Of the drawing where it holds few axes; between two axes where it holds many."""
LONGEST = 18
"""Letters of a word beside an axis."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its name, where it stands, and its marks by height."""

    name: str
    x: float
    marks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One trial: where it runs, and how good it is from 0 (the worst) to 1 (the best)."""

    number: int
    path: str
    good: float
    pruned: bool
    title: str


def axes(space: Space, trials: Sequence[Result], objective: Objective) -> list[Axis]:
    """The settings in the order they were typed, then the objective."""
    found = [
        Axis(name=key, x=MARGIN + gap(space) * place, marks=_marks(values))
        for place, (key, values) in enumerate(space.items())
    ]
    marks = _marks(_objective_scale(trials))
    return [*found, Axis(name=objective.metric or "", x=MARGIN + gap(space) * len(found), marks=marks)]


def lines(space: Space, trials: Sequence[Result], objective: Objective) -> list[Line]:
    """A line for each trial that has a value, the best ones last, so that they lie on top."""
    scale, ranks = _objective_scale(trials), goodness(trials, objective)
    found = []
    for trial in sorted(drawn(trials), key=lambda trial: ranks.get(trial.number, 0.0)):
        values = read(space, trial.overrides)
        shares = [space[key].share(values[key]) for key in space]
        assert trial.value is not None
        found.append(
            Line(
                number=trial.number,
                path=_path([_y(share) for share in [*shares, scale.share(trial.value)]], gap=gap(space)),
                good=ranks.get(trial.number, 0.0),
                pruned=trial.status == "pruned",
                title=f"trial {trial.number}: {objective.metric} {number_text(trial.value)}",
            )
        )
    return found


def drawn(trials: Sequence[Result]) -> list[Result]:
    """Trials with a value of the objective."""
    return [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def goodness(trials: Sequence[Result], objective: Objective) -> Mapping[int, float]:
    """From 1 for the best trial down to 0, by rank: one that went astray leaves the colours of the others."""
    ranked = best(trials, objective)
    levels = list(dict.fromkeys(trial.value for trial in ranked))
    return {trial.number: 1 - levels.index(trial.value) / max(len(levels) - 1, 1) for trial in ranked}


def gap(space: Space) -> float:
    """Between two axes."""
    return max(NARROWEST, (WIDTH - 2 * MARGIN) / max(len(space), 1))


def width(space: Space) -> float:
    """Of the whole drawing."""
    return 2 * MARGIN + gap(space) * len(space)


def _marks(values: Dimension | Scale) -> list[tuple[float, str]]:
    return [(_y(values.share(value)), _mark(value)) for value in values.marks()]  # type: ignore[arg-type]


def _mark(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    word = str(value)
    return word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"


def _objective_scale(trials: Sequence[Result]) -> Scale:
    values = [trial.value for trial in drawn(trials) if trial.value is not None] or [0.0, 1.0]
    return Scale(low=min(values), high=max(values))


def _path(heights: Sequence[float], *, gap: float) -> str:
    """From axis to axis, level where it crosses one, so that lines can be told apart there."""
    path = [f"M{MARGIN:.0f} {heights[0]:.1f}"]
    for place, (before, after) in enumerate(pairwise(heights)):
        left, right = MARGIN + gap * place, MARGIN + gap * (place + 1)
        bend = gap / 2.2
        path.append(f"C{left + bend:.1f} {before:.1f} {right - bend:.1f} {after:.1f} {right:.0f} {after:.1f}")
    return "".join(path)


def _y(height: float) -> float:
    return TOP + HEIGHT * (1 - height)
