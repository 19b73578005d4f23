"""``report.html`` of a comparison: the table, and bars for time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrib.config import RunConfig, to_yaml
from distrib.proof.compare import Entry, advice
from distrib.proof.drawing import HEIGHT, LEFT, RIGHT, WIDTH, draw
from distrib.proof.memory_parts import PARTS
from distrib.proof.pages import render
from distrib.tracking.text import bytes_text, number_text, short_text


def write_page(root: Path, entries: Sequence[Entry]) -> Path:
    """Writes the page into the comparison's directory and returns its path."""
    ran = [entry for entry in entries if entry.samples]
    configs = [entry.cell.config for entry in entries if isinstance(entry.cell.config, RunConfig)]
    loss = draw("loss", {_name(entry): entry.samples[0].loss_curve for entry in ran})
    return render(
        root,
        "compare.html",
        name=configs[0].name if configs else "comparison",
        advice=advice(entries),
        rows=[_row(entry) for entry in ran],
        failures=[(_name(entry), entry.failure) for entry in entries if entry.failure],
        parts=PARTS,
        times=times(ran),
        memories=memories(ran),
        charts=[loss] if loss else [],
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        config=to_yaml(configs[0]) if configs else "",
    )


def times(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A bar per strategy with its middle half, in per cent of the longest."""
    longest = max((entry.spread[1] for entry in entries), default=1.0)
    return [
        {
            "name": _name(entry),
            "width": 100 * entry.median / longest,
            "low": 100 * entry.spread[0] / longest,
            "high": 100 * entry.spread[1] / longest,
            "text": f"{1e3 * entry.median:.1f} ms",
        }
        for entry in entries
    ]


def memories(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A bar per strategy made of the parts of its live tensors, in per cent of the largest."""
    largest = max((entry.tensors for entry in entries), default=0) or 1
    return [
        {
            "name": _name(entry),
            "parts": [(part, 100 * size / largest, bytes_text(size)) for part, size in entry.memory.items()],
            "text": bytes_text(entry.tensors),
        }
        for entry in entries
        if entry.memory
    ]


def _row(entry: Entry) -> list[str]:
    low, high = entry.spread
    return [
        entry.cell.strategy,
        str(entry.cell.world_size),
        f"{1e3 * entry.median:.1f} ms",
        f"{1e3 * low:.1f} - {1e3 * high:.1f}",
        short_text(entry.examples_per_second),
        f"{entry.waiting:.0%}",
        "-" if entry.sent is None else bytes_text(entry.sent),
        bytes_text(entry.peak),
        number_text(entry.loss),
    ]


def _name(entry: Entry) -> str:
    return f"{entry.cell.strategy} x {entry.cell.world_size}"
