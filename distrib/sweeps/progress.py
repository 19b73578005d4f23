"""How far a running trial is, read from what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distrib.tracking.files import METRICS, RUN, read_json
from distrib.tracking.text import number_text


class Progress:
    """Follows ``metrics.jsonl`` of one trial.

    Args:
        run_dir: the trial's directory; nothing need be there yet.
        metric: the sweep's objective.
    """

    def __init__(self, run_dir: Path, *, metric: str | None) -> None:
        self._run_dir, self._metric = run_dir, metric
        self._read_to, self._inode = 0, 0
        self._step = 0
        self._num_steps: int | None = None
        self.curve: list[tuple[int, float]] = []
        """The objective by step so far."""

    def update(self) -> None:
        """Reads the whole lines that are new."""
        path = self._run_dir / METRICS
        if not path.exists():
            return
        if path.stat().st_ino != self._inode:  # a resumed trial has cut off what it makes again
            self._read_to, self._inode, self.curve = 0, path.stat().st_ino, []
        with path.open("rb") as file:
            file.seek(self._read_to)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._read_to += len(lines + newline)
        for line in lines.splitlines():
            self._add(json.loads(line))

    def __str__(self) -> str:
        """As ``step 40 of 100, accuracy 0.8125``."""
        if not self._step:
            return "starting"
        if self._num_steps is None:
            self._num_steps = read_json(self._run_dir / RUN).get("num_steps")
        planned = f" of {self._num_steps}" if self._num_steps else ""
        value = f", {self._metric} {number_text(self.curve[-1][1])}" if self.curve else ""
        return f"step {self._step}{planned}{value}"

    def _add(self, record: dict[str, Any]) -> None:
        self._step = int(record.get("step") or self._step)
        value = record.get(f"eval/{self._metric}")
        if value is not None and math.isfinite(value):
            self.curve.append((self._step, value))
