"""Self-contained pages in the style of a run's ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distrib.tracking.html import write_html
from distrib.tracking.report import PAGE
from distrib.tracking.report import TEMPLATE as RUN_TEMPLATE

TEMPLATE = Path(__file__).parent / "template"


def render(folder: Path, template: str, **values: Any) -> Path:
    """Writes ``report.html`` into ``folder`` and returns its path; every value is escaped."""
    style = (RUN_TEMPLATE / "page.css").read_text(encoding="utf-8")
    style += (TEMPLATE / "proof.css").read_text(encoding="utf-8")
    return write_html(folder / PAGE, template, folders=[TEMPLATE], style=style, **values)
