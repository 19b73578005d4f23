"""The run directory's own record: plain files that need no package to be read."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from distrib.errors import DataError
from distrib.tracking.environment import hardware, versions

if TYPE_CHECKING:
    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo

METRICS, EVALUATION, SUMMARY, RUN = "metrics.jsonl", "evaluation.json", "summary.json", "run.json"


class RunFiles:
    """Keeps ``metrics.jsonl``, ``evaluation.json``, ``run.json`` and ``summary.json``.

    ``metrics.jsonl`` has one object per optimizer step and one per evaluation (``eval/<metric>``),
    each written out at once, so that a killed run keeps them. A resumed run cuts off what lies
    beyond the step it goes on from. A number that is not finite is written as null: JSON has no NaN.
    """

    def __init__(self) -> None:
        self._run_dir = Path()
        self._metrics: TextIO | None = None

    def check(self) -> None: ...

    def start(self, info: RunInfo) -> None:
        self._run_dir = info.run_dir
        info.run_dir.mkdir(parents=True, exist_ok=True)
        if lost := _forget_beyond(info.first_step, info.run_dir):
            words = f"{lost} logged updates after step {info.first_step} are lost and made again"
            print(f"notice: {words}", file=sys.stderr, flush=True)
        write_json(info.run_dir / RUN, _facts(info))
        self._metrics = (info.run_dir / METRICS).open("a", buffering=1, encoding="utf-8")

    def step(self, record: Mapping[str, float]) -> None:
        self._append(record)

    def evaluation(self, step: int, report: Report) -> None:
        self._append({"step": step, **{f"eval/{name}": value for name, value in report.metrics.items()}})
        write_json(self._run_dir / EVALUATION, {"step": step, **asdict(report)})

    def notice(self, text: str) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_json(self._run_dir / SUMMARY, summary)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _append(self, record: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write(_line(record))


def read_metrics(path: Path) -> Iterator[dict[str, float | None]]:
    """The objects of ``metrics.jsonl`` in order; an unfinished last line is left out. Raises `DataError`."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith("\n"):
                yield _object(line, where=f"{path}:{number}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces ``path`` in one move: a reader sees the old file or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(_finite(value), indent=1, allow_nan=False, default=str)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is no such file. Raises `DataError`."""
    return _object(path.read_text(encoding="utf-8"), where=str(path)) if path.exists() else {}


def _object(text: str, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} does not hold a JSON object")
    return value


def _facts(info: RunInfo) -> dict[str, Any]:
    """What the page needs of a run that never finished."""
    names = ("name", "num_steps", "first_step", "world_size", "strategy", "num_parameters", "steps_per_epoch")
    facts = {name: getattr(info, name) for name in names}
    return {**facts, "notes": dict(info.notes), "versions": versions(), "hardware": hardware()}


def _line(record: Mapping[str, float | None]) -> str:
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with None where a number is NaN or infinite, and lists where there are tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _forget_beyond(step: int, run_dir: Path) -> int:
    """Makes the record end at ``step``: what came after, which is counted, is about to be made again."""
    records = list(read_metrics(run_dir / METRICS)) if step else []
    kept = [_line(record) for record in records if (record["step"] or 0) <= step]
    partial = run_dir / (METRICS + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, run_dir / METRICS)
    (run_dir / SUMMARY).unlink(missing_ok=True)
    if step == 0 or read_json(run_dir / EVALUATION).get("step", 0) > step:
        (run_dir / EVALUATION).unlink(missing_ok=True)
    return max([0, *(int(record["step"] or 0) - step for record in records)])
