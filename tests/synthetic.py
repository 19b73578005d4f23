"""Runs that were never trained: what trackers are told, made from formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distrib.tasks.base import Report
from distrib.tracking.base import RunInfo, Tracker

LABELS = ("business", "sport", "tech")
CONFIG: Mapping[str, Any] = {"name": "news", "train": {"steps": 40, "epochs": None}, "plugins": []}


def info(run_dir: Path, **changes: Any) -> RunInfo:
    """A run of 40 steps."""
    facts: dict[str, Any] = {
        "name": "news",
        "run_dir": run_dir,
        "config": CONFIG,
        "num_steps": 40,
        "first_step": 0,
        "world_size": 2,
        "strategy": "ddp",
        "num_parameters": 22_700_000,
        "steps_per_epoch": 20,
        "notes": {"train_examples": 640, "bad_rows_skipped": 0},
    }
    return RunInfo(**{**facts, **changes})


def record(step: int, **changes: float) -> dict[str, float]:
    """One optimizer step whose loss falls."""
    values = {
        "step": step,
        "loss": math.exp(-step / 20),
        "grad_norm": 1.0 + 1.0 / step,
        "lr": 1e-4,
        "examples": 32,
        "tokens": 4000,
        "seconds": 0.5,
        "memory": 1.2e9,
    }
    return {**values, **changes}


def report(accuracy: float = 0.9, *, labels: Sequence[str] = LABELS) -> Report:
    """A report with 10 examples of each class, one of them mistaken."""
    size = len(labels)
    matrix = [[9 * (i == j) + 1 * ((i + 1) % size == j) for j in range(size)] for i in range(size)]
    rows = [{"name": name, "precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 10.0} for name in labels]
    return Report(metrics={"accuracy": accuracy, "loss": 0.25}, classes=rows, confusion=matrix)


def write_run(
    tracker: Tracker, facts: RunInfo, *, last: int | None = None, labels: Sequence[str] = LABELS
) -> None:
    """Tells ``tracker`` a whole run; one that was killed after step ``last`` where that is given."""
    tracker.start(facts)
    for step in range(facts.first_step + 1, (last or facts.num_steps) + 1):
        tracker.step(record(step))
        if step % 20 == 0:
            tracker.evaluation(step, report(step / 50, labels=labels))
    if last is None:
        tracker.finish({"metrics": {"accuracy": 0.8}, "steps": facts.num_steps, "stopped_by": None})
        tracker.close()
