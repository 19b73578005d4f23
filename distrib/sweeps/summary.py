"""A sweep as trackers keep it: one row per trial, and what came of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from distrib.sweeps.results import Record, Result, best
from distrib.sweeps.space import Space, read
from distrib.tracking.base import SweepInfo


def sweep_info(record: Record, *, name: str, root: Path, space: Space) -> SweepInfo:
    """What a `SweepTracker` is told of a sweep that is over."""
    metric = record.objective.metric or "value"
    summary: dict[str, Any] = dict(Counter(trial.status for trial in record.trials))
    for first in best(record.trials, record.objective)[:1]:
        summary |= {f"best/{metric}": first.value, "best/trial": first.number}
        summary |= {f"best/{key}": value for key, value in read(space, first.overrides).items()}
    return SweepInfo(
        name=name,
        root=root,
        metric=metric,
        config={"overrides": list(record.overrides), "varies": list(space)},
        trials=[_row(trial, space, metric=metric) for trial in record.trials],
        summary=summary,
    )


def _row(trial: Result, space: Space, *, metric: str) -> dict[str, Any]:
    values = read(space, trial.overrides)
    settings = {key: values.get(key) for key in space}
    return {"trial": trial.number, "status": trial.status, **settings, metric: trial.value}
