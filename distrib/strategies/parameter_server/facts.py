"""What is measured of the strategy's own working."""

from __future__ import annotations

import time
from collections import Counter

BINS = {"0": 0, "1": 1, "2": 2, "3": 3, "4-7": 4, "8_or_more": 8}
"""Of the histogram of staleness: by name, the least that is counted there."""


class Facts:
    """A server's numbers since they were last taken."""

    def __init__(self, *, num_workers: int) -> None:
        self.busy = 0.0
        """Seconds of making updates."""
        self.redone = 0
        """Times that a step was run again."""
        self._staleness: Counter[int] = Counter()
        self._used = self._due = 0.0
        """Targets, of all steps."""
        self._waited = [0.0] * num_workers
        self._since = time.perf_counter()

    def staleness(self, updates: int) -> None:
        """Counts one push that was computed from weights ``updates`` versions old."""
        self._staleness[updates] += 1

    def targets(self, used: float, *, due: float) -> None:
        """Counts a step's update that was made of ``used`` of its ``due`` targets."""
        self._used, self._due = self._used + used, self._due + due

    def waited(self, worker: int, seconds: float) -> None:
        """Adds what a worker says that it has waited for the servers' answers."""
        self._waited[worker] += seconds

    def taken(self) -> dict[str, float]:
        """The numbers so far, which begin anew."""
        now, counts = time.perf_counter(), self._staleness
        total = max(sum(counts.values()), 1)
        numbers = {
            "staleness": sum(age * count for age, count in counts.items()) / total,
            "staleness_max": float(max(counts, default=0)),
            "server_load": self.busy / max(now - self._since, 1e-9),
            **{f"staleness/{name}": count for name, count in histogram(counts).items()},
            **{f"waited_seconds/worker_{worker}": seconds for worker, seconds in enumerate(self._waited)},
        }
        if self._due:
            numbers["missing_targets"] = 1 - self._used / self._due
            numbers["redone_steps"] = float(self.redone)
        self.busy, self._staleness, self._since = 0.0, Counter(), now
        self._used = self._due = 0.0
        self.redone = 0
        self._waited = [0.0] * len(self._waited)
        return numbers


def histogram(counts: Counter[int]) -> dict[str, float]:
    """How many pushes lie in each of `BINS`."""
    found = dict.fromkeys(BINS, 0.0)
    for updates, count in counts.items():
        found[next(name for name, least in reversed(BINS.items()) if updates >= least)] += count
    return found
