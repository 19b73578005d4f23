"""The last lines of a run: how good it is, where it lies, how to go on and how to use it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.tracking.text import clock_text, number_text, short_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo

CLASSES_SHOWN = 40
"""Rows of the table on screen; the page has them all."""


def closing(info: RunInfo, *, report: Report | None, summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Text and tables for the screen, in order."""
    yield ""
    if report is not None:
        yield from evaluation_tables(report)
    run_dir, steps = shown(info.run_dir), int(summary.get("steps", info.num_steps))
    if summary.get("stopped_by"):
        yield f"stopped by      {summary['stopped_by']}, after step {steps} of {info.num_steps}; all is saved"
    yield from _speed(summary)
    yield f"run directory   {run_dir}"
    yield f"page            {shown(info.run_dir / 'report.html')}"
    yield f"continue        {continue_command(info, steps=steps)}"
    yield f"use             {use_command(info)}"


def evaluation_tables(report: Report, *, split: str = "held out") -> Iterator[RenderableType]:
    """The metrics in one line, then the table of classes where there are any."""
    yield f"{split:<16}" + "  ".join(f"{name} {number_text(value)}" for name, value in report.metrics.items())
    if report.classes:
        yield class_table(report)
    if len(report.classes) > CLASSES_SHOWN:
        yield f"… and {len(report.classes) - CLASSES_SHOWN} more classes on the page"


def class_table(report: Report) -> Table:
    """Precision, recall, F1 and support per class."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    columns = [column for column in report.classes[0] if column != "name"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in report.classes[:CLASSES_SHOWN]:
        table.add_row(Text(str(row["name"])), *(_cell(column, row.get(column)) for column in columns))
    return table


def continue_command(info: RunInfo, *, steps: int) -> str:
    """The command that trains on: to the planned end, or twice as far where that is reached."""
    train = info.config.get("train") or {}
    words = ["distrib", "train", f"resume={shown(info.run_dir)}"]
    if steps < info.num_steps:
        words += ["train.stop_after=null"] if train.get("stop_after") else []
    elif train.get("epochs") is not None:
        words.append(f"train.epochs={number_text(2 * float(train['epochs']))}")
    else:
        words.append(f"train.steps={2 * info.num_steps}")
    plugins = info.config.get("plugins") or ()
    return shlex.join([*words, *([f"plugins=[{','.join(plugins)}]"] if plugins else [])])


def use_command(info: RunInfo) -> str:
    """The command that asks the trained model about a text."""
    plugins = [word for package in info.config.get("plugins") or () for word in ("--plugin", package)]
    return shlex.join(["distrib", "predict", str(shown(info.run_dir)), *plugins]) + ' --text "…"'


def shown(path: Path) -> Path:
    """The path as short as it can be typed here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _cell(column: str, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return number_text(value) if column == "support" or value is None else f"{value:.3f}"


def _speed(summary: Mapping[str, Any]) -> Iterator[str]:
    parts = []
    if summary.get("seconds"):
        parts.append(clock_text(float(summary["seconds"])))
    if summary.get("examples_per_second"):
        parts.append(f"{short_text(float(summary['examples_per_second']))} examples/s")
    if parts:
        yield f"trained         {number_text(summary.get('steps'))} steps, " + ", ".join(parts)
