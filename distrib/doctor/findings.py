"""The outcome of one check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has seen, and what to do about it."""

    area: str
    """The part of the table it stands in, as ``network``."""
    name: str
    verdict: Verdict
    """``note``: nothing to do unless the user wants what is missing; only ``fail`` fails the command."""
    seen: str
    remedy: str | None = None
    """What would mend it; given for every ``warn`` and ``fail``."""
    is_consequence: bool = False
    """It only says that another rank has failed, whose own finding is the cause."""


def failed(findings: Iterable[Finding]) -> bool:
    """Whether a job would not run."""
    return any(finding.verdict == "fail" for finding in findings)
