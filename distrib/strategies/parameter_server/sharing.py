"""Which worker runs which microbatches, where that goes by measured speed: the first server says it.

It decides when it makes an update, and tells it in its answers to that step's pushes and later ones. A
decision counts from the first step that no worker may have collated by then: all go by the same. A worker
that is lost has no share until it is back. Where the step in which it was lost is run again, all workers
collate that anew, and the decision counts at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping

EVERY = 8
"""Steps that speeds are measured over."""

Decision = tuple[int, list[float]]
"""The step from which on it counts, and each worker's speed; 0: it is not there."""


class Sharing:
    """The first server's side.

    Args:
        ahead: steps after the one updated next that a worker may have collated: it may be ahead itself.
    """

    def __init__(self, *, num_workers: int, ahead: int) -> None:
        self.decisions: list[Decision] = [(0, [1.0] * num_workers)]
        """What counts at the next step, and later ones."""
        self._ahead = ahead
        self._measured: dict[int, list[float]] = {}
        self._seconds: dict[int, float] = {}
        """By worker for one microbatch, as last decided on."""

    def update(self, step: int, *, seconds: Mapping[int, float], present: Collection[int]) -> None:
        """Takes in how long each worker took for a microbatch of ``step``, and decides anew where it is time.

        That is at the end of a window, and when somebody is lost or has come back.
        """
        for rank, taken in seconds.items():
            self._measured.setdefault(rank, []).append(taken)
        is_due = (step + 1) % EVERY == 0
        if is_due:
            usual = {rank: statistics.median(taken) for rank, taken in self._measured.items()}
            self._seconds, self._measured = self._seconds | usual, {}
        self._seconds = {rank: taken for rank, taken in self._seconds.items() if rank in present}
        speeds = self._speeds(present)
        if is_due or list(map(bool, speeds)) != list(map(bool, self.decisions[-1][1])):
            self.decisions.append((step + self._ahead + 1, speeds))
        while len(self.decisions) > 1 and self.decisions[1][0] <= step + 1:
            del self.decisions[0]

    def lacks(self, ranks: Collection[int]) -> bool:
        """Whether somebody has a share of the step that is updated next who is not of ``ranks``."""
        _, speeds = self.decisions[0]
        return any(speed > 0 and rank not in ranks for rank, speed in enumerate(speeds))

    def redo(self, step: int, *, present: Collection[int]) -> None:
        """Decides anew from ``step`` on, which is run again by those who are there."""
        self.decisions = [(step, self._speeds(present))]

    def _speeds(self, present: Collection[int]) -> list[float]:
        """Who has not been measured is taken to be like the others."""
        known = {rank: 1 / taken for rank, taken in self._seconds.items()}
        usual = statistics.fmean(known.values()) if known else 1.0
        num_workers = len(self.decisions[0][1])
        return [known.get(rank, usual) if rank in present else 0.0 for rank in range(num_workers)]

    def later_than(self, step: int) -> list[Decision]:
        """What does not count at ``step`` yet."""
        return [decision for decision in self.decisions if decision[0] > step]
