"""The tables of ``distrib compare``."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from distrib.proof.compare import Entry
from distrib.proof.memory_parts import PARTS
from distrib.tracking.text import bytes_text, number_text, short_text

TIMES = ("processes", "step", "middle half", "examples/s", "waiting", "sent/step", "final loss")


def time_table(entries: Sequence[Entry]) -> Table:
    """A row per strategy, the fastest first; one that never ran says so in place of its numbers."""
    table = _table("per optimizer step", TIMES)
    for entry in entries:
        numbers = _times(entry) if entry.samples else ["failed", *["-"] * (len(TIMES) - 2)]
        cells = [Text(text, style="" if entry.samples else "red") for text in numbers]
        table.add_row(entry.cell.strategy, str(entry.cell.world_size), *cells)
    return table


def memory_table(entries: Sequence[Entry]) -> Table:
    """A row per strategy that ran: its largest rank's memory and what it is for."""
    table = _table("memory of a rank", ("peak", *PARTS))
    for entry in entries:
        if entry.samples:
            parts = [bytes_text(entry.memory[part]) if entry.memory else "-" for part in PARTS]
            table.add_row(entry.cell.strategy, bytes_text(entry.peak), *parts)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("strategy")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _times(entry: Entry) -> list[str]:
    low, high = entry.spread
    return [
        f"{1e3 * entry.median:.1f} ms",
        f"{1e3 * low:.1f}-{1e3 * high:.1f}",
        short_text(entry.examples_per_second),
        f"{entry.waiting:.0%}",
        "-" if entry.sent is None else bytes_text(entry.sent),
        number_text(entry.loss),
    ]
