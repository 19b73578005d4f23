"""What a sweep leaves on screen: the table of its trials, the best one, how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distrib.sweeps.page import PAGE
from distrib.sweeps.results import SETTLED, STATUSES, Record, Result, best
from distrib.tracking.closing import shown
from distrib.tracking.text import number_text


def print_results(record: Record, root: Path, *, config_dirs: Sequence[str] = ()) -> None:
    """All trials, then why some did not end well, the best one, and where everything lies."""
    from distrib.cli.sweep_resume import resume_command

    console = Console()
    console.print(sweep_table(record.trials, root=root))
    for result in record.trials:
        if result.message is not None:
            console.print(
                f"trial {result.number}: {result.message}", style="red", markup=False, highlight=False
            )
    for first in best(record.trials, record.objective)[:1]:
        value = f"{record.objective.metric} {number_text(first.value)}"
        print(f"best              trial {first.number}   {value}   {' '.join(first.overrides)}")
    print(f"sweep directory   {root}")
    print(f"page              {shown(root / PAGE)}")
    if any(result.status not in SETTLED for result in record.trials):
        print(f"continue          {resume_command(shown(root), record, config_dirs=config_dirs)}")


def sweep_table(results: Sequence[Result], *, root: Path) -> Table:
    """One row per trial: what set it apart, how it ended, its final metric and what it took."""
    metrics = list(dict.fromkeys(result.metric for result in results if result.metric))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("status")
    # Trials of different tasks have different metrics: then each row names its own.
    table.add_column(metrics[0] if len(metrics) == 1 else "metric", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("directory", overflow="fold")
    for result in results:
        table.add_row(*_row(result, root=root, name_metric=len(metrics) > 1))
    return table


def _row(result: Result, *, root: Path, name_metric: bool) -> list[Text]:
    value = "" if result.value is None else f"{result.value:.4g}"
    return [
        Text(str(result.number)),
        Text(" ".join(result.overrides)),
        Text(result.status, style=STATUSES[result.status]),
        Text(f"{result.metric} {value}" if name_metric and value else value),
        Text("" if result.steps is None else str(result.steps)),
        Text("" if result.seconds is None else f"{result.seconds:.1f}"),
        Text("" if result.run_dir is None else str(Path(result.run_dir).relative_to(root))),
    ]
