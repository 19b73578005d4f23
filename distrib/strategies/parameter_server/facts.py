"""What is measured of the strategy's own working."""

from __future__ import annotations

import time
from collections import Counter


class Facts:
    """A server's numbers since they were last taken."""

    def __init__(self) -> None:
        self.busy = 0.0
        """Seconds of making updates."""
        self._staleness: Counter[int] = Counter()
        self._since = time.perf_counter()

    def staleness(self, updates: int) -> None:
        """Counts one push that was computed from weights ``updates`` versions old."""
        self._staleness[updates] += 1

    def taken(self) -> dict[str, float]:
        """The numbers so far, which begin anew."""
        now, counts = time.perf_counter(), self._staleness
        total = max(sum(counts.values()), 1)
        numbers = {
            "staleness": sum(age * count for age, count in counts.items()) / total,
            "staleness_max": float(max(counts, default=0)),
            "server_load": self.busy / max(now - self._since, 1e-9),
        }
        self.busy, self._staleness, self._since = 0.0, Counter(), now
        return numbers
