"""Self-contained pages: every value escaped, one script at most, replaced in one move."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_html(
    path: Path, template: str, *, folders: Sequence[Path], script: str = "", **values: Any
) -> Path:
    """Fills a template in and writes it to ``path``, which it returns; a reader never sees half a page.

    Args:
        folders: where the template and those it extends or includes are.
        script: the one script that the page may run, which the template gets as ``script`` together with
            its ``script_digest``, so that no text in the data can become another.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(script=script, script_digest=digest(script), **values)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, path)
    return path


def digest(script: str) -> str:
    """Names a script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
