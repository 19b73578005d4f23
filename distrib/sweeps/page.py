"""``sweep.html``: one self-contained page about a sweep, beside the pages of its trials."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrib.sweeps.axes import HEIGHT, TOP, axes, goodness, lines, width
from distrib.sweeps.results import WELL, Record, Result, best
from distrib.sweeps.space import Space, Value, read
from distrib.tracking.environment import without_secrets
from distrib.tracking.html import write_html
from distrib.tracking.report import PAGE as RUN_PAGE
from distrib.tracking.report import TEMPLATE as RUN_TEMPLATE
from distrib.tracking.text import clock_text, number_text

PAGE = "sweep.html"
TEMPLATE = Path(__file__).parent / "template"
BEST = 3
"""Configurations shown with the command that trains them again."""


def write_page(root: Path, record: Record, *, space: Space) -> Path:
    """Writes the page of a sweep that is over or under way and returns its path; every value is escaped."""
    style = (RUN_TEMPLATE / "page.css").read_text(encoding="utf-8")
    style += (TEMPLATE / "sweep.css").read_text(encoding="utf-8")
    return write_html(
        root / PAGE,
        "sweep.html",
        folders=[TEMPLATE],
        style=style,
        script=(TEMPLATE / "sweep.js").read_text(encoding="utf-8"),
        **view(root, record, space=space),
    )


def view(root: Path, record: Record, *, space: Space) -> dict[str, Any]:
    """Everything the page says, as plain values."""
    trials, objective = record.trials, record.objective
    ranked = best(trials, objective)
    others = [trial for trial in trials if trial not in ranked]
    good = goodness(trials, objective)
    way = "highest" if objective.higher_is_better else "lowest"
    return {
        "name": record.name,
        "state": _state(trials),
        "over": all(trial.status in WELL for trial in trials),
        "headline": f"{way} {objective.metric} of {len(trials)} trials",
        "tiles": _tiles(trials, ranked, metric=objective.metric or ""),
        "axes": axes(space, trials, objective) if ranked else [],
        "lines": lines(space, trials, objective) if ranked else [],
        "frame": {"width": width(space), "top": TOP, "bottom": TOP + HEIGHT, "height": TOP + HEIGHT + 18},
        "best": [_best(trial, record, space) for trial in ranked[:BEST]],
        "keys": list(space),
        "metric": objective.metric,
        "rows": [_row(root, trial, space, good=good.get(trial.number)) for trial in [*ranked, *others]],
        "command": _command(record.overrides, multirun=True),
    }


def _state(trials: Sequence[Result]) -> str:
    counts = Counter(trial.status for trial in trials)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _tiles(trials: Sequence[Result], ranked: Sequence[Result], *, metric: str) -> list[tuple[str, str]]:
    tiles = [(f"best {metric}, trial {trial.number}", number_text(trial.value)) for trial in ranked[:1]]
    steps = sum(trial.steps or 0 for trial in trials)
    seconds = sum(trial.seconds or 0.0 for trial in trials)
    return [*tiles, ("optimizer steps", f"{steps:,}"), ("time of all trials", clock_text(seconds))]


def _best(trial: Result, record: Record, space: Space) -> dict[str, Any]:
    fixed = [word for word in record.overrides if word.partition("=")[0] not in space]
    fixed = [word for word in fixed if not word.startswith(("sweep=", "sweep."))]
    return {
        "number": trial.number,
        "value": number_text(trial.value),
        "values": _values(trial, space),
        "command": _command([*fixed, *trial.overrides]),
    }


def _row(root: Path, trial: Result, space: Space, *, good: float | None) -> dict[str, Any]:
    report = root / str(trial.number) / RUN_PAGE
    return {
        "number": trial.number,
        "link": f"{trial.number}/{RUN_PAGE}" if report.exists() else None,
        "values": [text for _, text in _values(trial, space)],
        "status": trial.status,
        "well": trial.status in WELL,
        "value": number_text(trial.value),
        "good": good,
        "steps": number_text(trial.steps),
        "time": "-" if trial.seconds is None else clock_text(trial.seconds),
        "message": trial.message,
    }


def _values(trial: Result, space: Space) -> list[tuple[str, str]]:
    values = read(space, trial.overrides)
    return [(key, _text(values[key]) if key in values else "-") for key in space]


def _text(value: Value) -> str:
    return value if isinstance(value, str) else number_text(value)


def _command(words: Sequence[str], *, multirun: bool = False) -> str:
    flag = ["-m"] if multirun else []
    return str(without_secrets(shlex.join(["distrib", "train", *flag, *words])))
