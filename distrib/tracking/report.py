"""``report.html``: one self-contained page about a run, made from the files in its directory alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distrib.errors import DataError
from distrib.tracking.bars import bars
from distrib.tracking.curves import curves
from distrib.tracking.environment import COMMAND, without_secrets
from distrib.tracking.files import EVALUATION, METRICS, RUN, SUMMARY, read_json, read_metrics
from distrib.tracking.html import write_html
from distrib.tracking.text import bytes_text, clock_text, number_text, short_text

PAGE = "report.html"
TEMPLATE = Path(__file__).parent / "template"
CLASSES_DRAWN = 40
"""Largest confusion matrix drawn: beyond it the classes with the most examples."""

Record = Mapping[str, float | None]


def write_report(run_dir: Path) -> Path:
    """Writes the page of a finished, running or killed run and returns its path.

    Raises `DataError` where ``run_dir`` is no run directory or one of its files is damaged.
    """
    style, script = (_source(name) for name in ("page.css", "page.js"))
    return write_html(
        run_dir / PAGE, "page.html", folders=[TEMPLATE], style=style, script=script, **view(run_dir)
    )


def view(run_dir: Path) -> dict[str, Any]:
    """Everything the page says, as plain values; the template escapes every one of them."""
    if not any((run_dir / name).exists() for name in (RUN, METRICS, "config.yaml")):
        raise DataError(f"{run_dir} is not a run directory: it has neither config.yaml nor {METRICS}")
    records = list(read_metrics(run_dir / METRICS))
    facts = {**read_json(run_dir / RUN), **read_json(run_dir / SUMMARY)}
    evaluation = read_json(run_dir / EVALUATION)
    return {
        "name": str(facts.get("name") or run_dir.resolve().name),
        "headline": _headline(facts),
        "state": _state(facts, summarised=(run_dir / SUMMARY).exists()),
        "progress": _progress(facts, records),
        "tiles": _tiles(facts, evaluation, records),
        "charts": [asdict(curve) for curve in curves(records)],
        "bars": bars(records),
        "evaluation": evaluation,
        "confusion": confusion(evaluation),
        "command": _command(run_dir),
        "config": _config(run_dir / "config.yaml"),
        "tables": _tables(run_dir, facts),
    }


def confusion(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Names, rows of ``(count, depth of colour)`` and how many classes were left out.

    The depth is the root of the count's share of its true class: a few mistakes can still be seen.
    """
    matrix: Sequence[Sequence[int]] = evaluation.get("confusion") or []
    if not matrix:
        return None
    names = [str(row["name"]) for row in evaluation.get("classes") or []]
    names = names if len(names) == len(matrix) else [str(number) for number in range(len(matrix))]
    kept = sorted(sorted(range(len(matrix)), key=lambda i: -sum(matrix[i]))[:CLASSES_DRAWN])
    rows = [[(matrix[i][j], math.sqrt(matrix[i][j] / max(sum(matrix[i]), 1))) for j in kept] for i in kept]
    totals = [sum(matrix[i]) for i in kept]
    return {
        "names": [names[i] for i in kept],
        "rows": rows,
        "totals": totals,
        "left_out": len(matrix) - len(kept),
    }


def _headline(facts: Mapping[str, Any]) -> str:
    parts = []
    if facts.get("strategy"):
        parts.append(str(facts["strategy"]))
    if world_size := facts.get("world_size"):
        parts.append("1 process" if world_size == 1 else f"{world_size} processes")
    if facts.get("num_parameters"):
        parts.append(f"{short_text(facts['num_parameters'])} parameters")
    return " · ".join(parts)


def _state(facts: Mapping[str, Any], *, summarised: bool) -> str:
    if not summarised:
        return "not finished"
    return f"stopped by {facts['stopped_by']}" if facts.get("stopped_by") else "finished"


def _progress(facts: Mapping[str, Any], records: Sequence[Record]) -> str:
    done = int(max((record.get("step") or 0 for record in records), default=0))
    planned = facts.get("num_steps")
    return f"{done:,} of {planned:,} steps" if planned else f"{done:,} steps"


def _tiles(
    facts: Mapping[str, Any], evaluation: Mapping[str, Any], records: Sequence[Record]
) -> list[tuple[str, str]]:
    """The numbers at the top: held-out metrics first, then the speed and the cost."""
    metrics = facts.get("metrics") or evaluation.get("metrics") or {}
    tiles = [(str(name).removeprefix("eval/"), number_text(value)) for name, value in metrics.items()]
    steps = [record for record in records if record.get("seconds")]
    seconds = sum(record["seconds"] or 0 for record in steps)
    examples = sum(record.get("examples") or 0 for record in steps)
    if seconds:
        tiles.append(("examples per second", short_text(examples / seconds)))
        tiles.append(("time in steps", clock_text(seconds)))
    if skipped := facts.get("skipped_steps"):
        tiles.append(("steps skipped", number_text(skipped)))
    if memory := max((record.get("memory") or 0 for record in steps), default=0):
        tiles.append(("peak memory of a rank", bytes_text(memory)))
    return tiles


def _command(run_dir: Path) -> str:
    path = run_dir / COMMAND
    return str(without_secrets(path.read_text(encoding="utf-8").strip())) if path.exists() else ""


def _config(path: Path) -> str:
    import yaml

    if not path.exists():
        return ""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    return str(yaml.safe_dump(without_secrets(loaded), sort_keys=False, allow_unicode=True))


def _tables(run_dir: Path, facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled tables of names and values; an empty one is left out."""
    root = run_dir / "checkpoints"
    found = sorted(path for path in root.glob("*") if (path / "MANIFEST.json").exists())
    checkpoints = [(path.name, path.resolve().name if path.is_symlink() else "") for path in found]
    tables = [
        ("data", _rows(facts.get("notes"))),
        ("hardware", _rows(facts.get("hardware"))),
        ("versions", _rows(facts.get("versions"))),
        ("checkpoints", checkpoints),
    ]
    return [(title, rows) for title, rows in tables if rows]


def _rows(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), _cell(name, without_secrets(value)))
        for name, value in (values or {}).items()
    ]


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return bytes_text(value) if name == "memory" else number_text(value)


def _source(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")
