"""Keeps ``report.html`` in the run directory up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo


class Page:
    """Writes the page when the run ends, well or not. `RunFiles` must come before it."""

    def __init__(self) -> None:
        self._run_dir: Path | None = None

    def check(self) -> None: ...

    def start(self, info: RunInfo) -> None:
        self._run_dir = info.run_dir

    def step(self, record: Mapping[str, float]) -> None: ...

    def evaluation(self, step: int, report: Report) -> None: ...

    def notice(self, text: str) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        from distrib.tracking.report import write_report

        if self._run_dir is not None:
            write_report(self._run_dir)
            self._run_dir = None
