"""The table of ``distrib verify`` and what is said below it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from distrib.proof.trajectory import difference_text
from distrib.proof.verify import Row, Verified

STYLES = {"same": "green", "differs": "bold red", "failed": "bold red", "cannot run": "yellow"}

COLUMNS = {"loss": "loss", "grad_norm": "gradient norm", "weights": "weights", "evaluation": "evaluation"}
"""What is compared, by the name of its bound."""


def verify_table(verified: Verified) -> Table:
    """A row per strategy, number of processes and microbatch size; above them what is allowed."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="largest differences from one process")
    table.add_column("strategy")
    for column in ("processes", "microbatch", *COLUMNS.values()):
        table.add_column(column, justify="right")
    table.add_column("parameter", overflow="fold")
    table.add_column("verdict")
    allowed = [f"{getattr(verified.bounds, name):.1e}" for name in COLUMNS]
    rounding = [difference_text(verified.nudged.largest[name]) for name in COLUMNS]
    table.add_row("allowed", "", "", *allowed, "", "", style="dim")
    table.add_row("rounding alone", "1", "", *rounding, verified.nudged.parameter, "", style="dim")
    for row in verified.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[Text]:
    if row.found is None:
        numbers = [Text("-") for _ in COLUMNS]
    else:
        largest = row.found.largest
        numbers = [
            Text(difference_text(largest[n]), style="bold red" if n in row.broken else "") for n in COLUMNS
        ]
    return [
        Text(row.cell.strategy),
        Text(str(row.cell.world_size)),
        Text(str(row.cell.microbatch_size)),
        *numbers,
        Text(row.found.parameter if row.found and row.found.weight else ""),
        Text(row.verdict, style=STYLES[row.verdict]),
    ]


def remarks(verified: Verified) -> Iterator[tuple[str, str]]:
    """Text and style: where runs part, why they failed, and the verdict over all."""
    for row in verified.rows:
        who = row.cell.title
        if row.place:
            yield f"{who}: {row.place}", "red"
        if row.message:
            yield f"{who}: {row.message}", STYLES[row.verdict]
    for name in verified.never_ran:
        yield f"{name} was asked for and ran nowhere", "bold red"
    if verified.passed:
        yield "every run is the one-process run, within rounding", "green"
    else:
        yield "NOT the one-process run", "bold red"
