"""Where a worker's time goes besides arithmetic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class Spent:
    """Seconds since they were last asked for, in which the worker did nothing else."""

    push: float = 0.0
    """Sending, without what backward has hidden."""
    waited: float = 0.0
    """Until the servers answered: for other workers' gradients, and for the update."""
    pull: float = 0.0
    """Receiving weights, without what forward has hidden."""
    steps: int = 0
    microbatch: float = 0.0
    """Of the last step's arithmetic, for one microbatch."""
    untold: float = 0.0
    """Of what was ``waited``, since the servers were last told."""

    @contextmanager
    def on(self, what: Literal["push", "waited", "pull"]) -> Iterator[None]:
        """Counts what happens inside."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        setattr(self, what, getattr(self, what) + seconds)
        if what == "waited":
            self.untold += seconds

    @contextmanager
    def on_arithmetic(self, *, microbatches: int) -> Iterator[None]:
        """Measures what happens inside, but for the weights that it waits for."""
        began, before = time.perf_counter(), self.pull
        yield
        self.microbatch = (time.perf_counter() - began - (self.pull - before)) / microbatches

    def tell(self) -> float:
        """Seconds waited since the last time."""
        told, self.untold = self.untold, 0.0
        return told

    def taken(self) -> dict[str, float]:
        """Seconds per step, which begin anew."""
        steps = max(self.steps, 1)
        numbers = {
            "waited_seconds": self.waited / steps,
            "push_seconds": self.push / steps,
            "pull_seconds": self.pull / steps,
        }
        self.push = self.waited = self.pull = 0.0
        self.steps = 0
        return numbers
