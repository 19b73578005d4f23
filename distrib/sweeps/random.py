"""Points drawn at random: with few settings that matter, better than a grid of as many trials.

Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, JMLR 2012.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random as Generator

from distrib.sweeps.base import Parallel, Search, at_least_one
from distrib.sweeps.space import Space, draw


class Random(Search):
    """Independent points of the space: trial ``k`` is a function of ``seed`` and ``k`` alone.

    Args:
        num_trials: how many.
        seed: another one draws other points.
        parallel, prune_after_trials, prune_after_steps: as in `Search`.
    """

    def __init__(
        self,
        *,
        num_trials: int = 20,
        seed: int = 0,
        parallel: Parallel = "auto",
        prune_after_trials: int | None = None,
        prune_after_steps: int = 0,
    ) -> None:
        super().__init__(
            parallel=parallel, prune_after_trials=prune_after_trials, prune_after_steps=prune_after_steps
        )
        self.num_trials = at_least_one(num_trials)
        self.seed = seed

    def plan(self, space: Space) -> list[tuple[str, ...]]:
        """As `Search.plan`."""
        return [draw(space, Draws(f"{self.seed}/{number}")) for number in range(self.num_trials)]


class Draws:
    """Uniform values, the same for the same key on every machine and version of Python."""

    def __init__(self, key: str) -> None:
        self._generator = Generator(key)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of ``choices``."""
        return self._generator.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from ``low`` to ``high``."""
        if log:
            return math.exp(self._generator.uniform(math.log(low), math.log(high)))
        return self._generator.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number from ``low`` to ``high``; each has the share of the line around it."""
        if log:
            return round(self.suggest_float(name, low - 0.5, high + 0.499, log=True))
        return self._generator.randrange(low, high + 1, step)
