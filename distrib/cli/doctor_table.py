"""What ``distrib doctor`` shows: one line a check, then what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from distrib.doctor.findings import Finding, Verdict

STYLES: dict[Verdict, str] = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


def doctor_table(findings: Sequence[Finding]) -> Table:
    """Areas one after another, each in the order in which it was checked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("where")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("seen", overflow="fold")
    before = ""
    for finding in by_area(findings):
        table.add_row(
            Text("" if finding.area == before else finding.area, style="bold"),
            Text(finding.name),
            Text(finding.verdict, style=STYLES[finding.verdict]),
            Text(finding.seen),
        )
        before = finding.area
    return table


def remedies(findings: Sequence[Finding]) -> Group:
    """Failures first; at the end how many there are of each."""
    lines = []
    for verdict in ("fail", "warn"):
        for finding in findings:
            if finding.verdict == verdict:
                name = Text(f"{verdict}  {finding.area}, {finding.name}: ", style=STYLES[finding.verdict])
                lines.append(name.append(finding.remedy or finding.seen, style="default"))
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in STYLES}
    words = ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)
    return Group(*lines, Text(f"{len(findings)} checks: {words}", style="bold"))


def by_area(findings: Sequence[Finding]) -> list[Finding]:
    """Areas together, in the order of their first check."""
    areas = list(dict.fromkeys(finding.area for finding in findings))
    return sorted(findings, key=lambda finding: areas.index(finding.area))
