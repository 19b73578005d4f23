"""Cells, tables and footnotes made of results files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS


def shown(summary: dict[str, Any], number: str, *, digits: int) -> list[str]:
    """A cell with a median, empty where there is none."""
    return [f"{summary[number]['median']:.{digits}f}" if number in summary else ""]


def results(pattern: str) -> list[dict[str, Any]]:
    """The results files of that name, in the order of their names; none where nothing was measured."""
    return [load(path) for path in sorted(RESULTS.glob(pattern))]


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def by_round(result: dict[str, Any], name: str, number: str) -> float:
    """The median over rounds of what ``name`` takes more than the hand-written loop in the same round."""
    pairs = zip(result["rounds"][name], result["rounds"]["plain"], strict=True)
    return float(statistics.median(ours[number] - plain[number] for ours, plain in pairs))


def spread(summary: dict[str, float], *, digits: int = 0) -> str:
    low, high = summary["lowest"], summary["highest"]
    return f"{summary['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def footnote(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "distrib")
    rounds = "1 round" if result["repeats"] == 1 else f"{result['repeats']} rounds"
    return f"{rounds}; {hardware['processor']}, {hardware['cores']} cores; {named}.\n"
