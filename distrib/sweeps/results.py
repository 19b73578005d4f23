"""How trials ended, and ``sweep.json``, which holds all of it.

::

    {"name", "overrides", "metric", "higher_is_better",
     "trials": [{"number", "overrides", "status", "run_dir", "metric", "value", ...}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from distrib.config import RunConfig
from distrib.errors import DataError
from distrib.targets import locate
from distrib.tracking.files import METRICS, SUMMARY, read_json, read_metrics, write_json

RECORD = "sweep.json"
INTERRUPTED = 130

STATUSES = {
    "done": "green",
    "pruned": "cyan",  # worse than the others half-way; it has saved
    "stopped": "yellow",  # before its last step, by train.stop_after
    "stopped by a signal": "yellow",  # SIGTERM or SIGUSR1; it has saved, and the sweep ends
    "interrupted": "yellow",  # Ctrl-C; the sweep ends
    "failed": "red",
    "refused": "red",  # its configuration cannot run
    "running": "blue",  # in the record of a killed sweep too
    "waiting": "dim",
    "not run": "yellow",
}
"""What a trial may be, and its colour on screen."""

SETTLED = ("done", "pruned", "stopped", "refused")
"""Not run again when the sweep goes on."""
WELL = ("done", "pruned", "stopped")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a sweep is for."""

    metric: str | None
    higher_is_better: bool = True

    @classmethod
    def of(cls, config: RunConfig) -> Objective:
        """The primary metric of the run's task."""
        task = locate(config.task, key="task", plugins=config.plugins)
        return cls(
            metric=getattr(task, "primary_metric", None),
            higher_is_better=bool(getattr(task, "higher_is_better", True)),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trial: how it stands or how it ended."""

    number: int
    overrides: tuple[str, ...]
    """What sets it apart from the other trials."""
    status: str
    """One of `STATUSES`."""
    run_dir: str | None = None
    metric: str | None = None
    value: float | None = None
    steps: int | None = None
    seconds: float | None = None
    message: str | None = None
    """Why it did not end well."""
    curve: tuple[tuple[int, float], ...] = ()
    """The metric by step: every evaluation."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The opposite of `asdict`."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        curve = tuple((int(step), float(value)) for step, value in known.pop("curve", ()))
        return cls(**{**known, "overrides": tuple(known["overrides"]), "curve": curve})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A whole sweep as ``sweep.json`` holds it."""

    name: str
    overrides: tuple[str, ...]
    """As typed, without ``run_dir``."""
    objective: Objective
    trials: tuple[Result, ...]

    def write(self, root: Path) -> None:
        """Whole at any time, so that a sweep can be watched, and killed."""
        values = asdict(self)
        objective = values.pop("objective")
        trials = values.pop("trials")
        write_json(root / RECORD, {**values, **objective, "trials": trials})

    @classmethod
    def read(cls, root: Path) -> Record:
        """Raises `DataError` where ``root`` holds no sweep."""
        values = read_json(root / RECORD)
        try:
            return cls(
                name=values["name"],
                overrides=tuple(values["overrides"]),
                objective=Objective(metric=values["metric"], higher_is_better=values["higher_is_better"]),
                trials=tuple(map(Result.from_dict, values["trials"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{root / RECORD} does not hold a sweep ({error!r})") from error


def outcome(result: Result, config: RunConfig, *, code: int, message: str | None, pruned: bool) -> Result:
    """``result`` with what the trial's directory says of its end.

    Args:
        code: the exit code of the trial.
        message: why it failed, where the launcher said so.
        pruned: it was asked to stop because it was worse than others; it may have ended before it heard.
    """
    run_dir = Path(result.run_dir or "")
    metric = Objective.of(config).metric
    result = replace(result, metric=metric, curve=evaluations(run_dir, metric))
    if code == INTERRUPTED:
        return replace(result, status="interrupted")
    if code != 0:
        why = message or f"exit code {code}; see {run_dir / 'logs'}"
        return replace(result, status="failed", message=why)
    # Empty where a launcher only submitted the job and the run is still to come.
    summary = read_json(run_dir / SUMMARY)
    return replace(
        result,
        status=_status(str(summary.get("stopped_by") or ""), pruned=pruned),
        value=summary.get("metrics", {}).get(metric),
        steps=summary.get("steps"),
    )


def finished(result: Result, config: RunConfig) -> Result | None:
    """A trial whose end nobody noted because the sweep was killed first; None where it has not ended."""
    if result.run_dir is None:
        return None
    summary = read_json(Path(result.run_dir) / SUMMARY)
    if not summary or summary.get("stopped_by"):
        return None
    return outcome(result, config, code=0, message=None, pruned=False)


def evaluations(run_dir: Path, metric: str | None) -> tuple[tuple[int, float], ...]:
    """The metric by step, from ``metrics.jsonl``; what is not finite is left out."""
    found = ((record["step"], record.get(f"eval/{metric}")) for record in read_metrics(run_dir / METRICS))
    return tuple(
        (int(step or 0), value) for step, value in found if value is not None and math.isfinite(value)
    )


def best(results: Iterable[Result], objective: Objective) -> list[Result]:
    """Trials that ended with a value of the sweep's metric, the best first."""
    ranked = [r for r in results if r.status in ("done", "stopped") and r.metric == objective.metric]
    sign = -1 if objective.higher_is_better else 1
    with_value = [(sign * r.value, r.number, r) for r in ranked if r.value is not None]
    return [r for _, _, r in sorted(with_value, key=lambda entry: entry[:2])]


def exit_code(results: Sequence[Result]) -> int:
    """0 where every trial ended well, 130 after Ctrl-C, else 1."""
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return INTERRUPTED
    return 0 if statuses <= set(WELL) else 1


def _status(stopped_by: str, *, pruned: bool) -> str:
    if stopped_by.startswith("SIG"):
        return "pruned" if pruned else "stopped by a signal"
    return "stopped" if stopped_by else "done"
