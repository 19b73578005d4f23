"""Self-contained pages in the style of a run's ``report.html``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distrib.tracking.report import PAGE
from distrib.tracking.report import TEMPLATE as RUN_TEMPLATE

TEMPLATE = Path(__file__).parent / "template"


def render(folder: Path, template: str, **values: Any) -> Path:
    """Writes ``report.html`` into ``folder`` and returns its path; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (RUN_TEMPLATE / "page.css").read_text(encoding="utf-8")
    style += (TEMPLATE / "proof.css").read_text(encoding="utf-8")
    text = environment.get_template(template).render(style=style, **values)
    partial = folder / (PAGE + ".partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    os.replace(partial, folder / PAGE)
    return folder / PAGE
