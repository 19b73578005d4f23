"""What every way of searching promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from distrib.errors import ConfigError
from distrib.sweeps.results import Objective, Result
from distrib.sweeps.space import Space

Parallel = int | Literal["auto"] | None
"""How many trials run at once: see `Search`."""


class Search(ABC):
    """Decides which trials a sweep has. Constructor arguments are the keys of ``conf/sweep/<name>.yaml``.

    Nothing is kept between two calls: a trial follows from the settings, its number and the results so
    far. So a sweep that was killed goes on with the trials it would have had.

    Args:
        parallel: trials that run at once; "auto": all where the launcher queues many as one job and they are
            known beforehand, else one; None: as many as fit the launcher, or this machine's GPUs, or cores.
        prune_after_trials: a trial is stopped where its evaluations fall behind the median of the others,
            once so many others are done; None: never.
        prune_after_steps: no trial is stopped before this step.
    """

    def __init__(self, *, parallel: Parallel, prune_after_trials: int | None, prune_after_steps: int) -> None:
        if not _is_parallel(parallel):
            raise ConfigError("sweep.parallel", parallel, "at least 1, auto, or null for as many as fit")
        if prune_after_trials is not None and prune_after_trials < 1:
            raise ConfigError("sweep.prune_after_trials", prune_after_trials, "at least 1, or null for never")
        self.parallel = parallel
        self.prune_after_trials = prune_after_trials
        self.prune_after_steps = prune_after_steps

    def check(self) -> None:  # noqa: B027
        """Raises `MissingDependencyError` where a package is missing."""

    @abstractmethod
    def plan(self, space: Space) -> list[tuple[str, ...]]:
        """The overrides of the trials that are known before any has run."""

    def propose(
        self, space: Space, past: Sequence[Result], *, objective: Objective
    ) -> tuple[str, ...] | None:
        """The overrides of the trial after ``past``, whose last ones may still run; None: there is none."""
        return None


def _is_parallel(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= 1
    return value is None or value == "auto"


def at_least_one(num_trials: int) -> int:
    """``num_trials``. Raises `ConfigError` where it is none."""
    if num_trials < 1:
        raise ConfigError("sweep.num_trials", num_trials, "at least 1 is needed")
    return num_trials
