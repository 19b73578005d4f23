"""Every combination."""

from __future__ import annotations

from itertools import product

from distrib.sweeps.base import Parallel, Search
from distrib.sweeps.space import Space


class Grid(Search):
    """Every combination of the values; the last setting varies fastest. Arguments as of `Search`."""

    def __init__(
        self,
        *,
        parallel: Parallel = "auto",
        prune_after_trials: int | None = None,
        prune_after_steps: int = 0,
    ) -> None:
        super().__init__(
            parallel=parallel, prune_after_trials=prune_after_trials, prune_after_steps=prune_after_steps
        )

    def plan(self, space: Space) -> list[tuple[str, ...]]:
        """As `Search.plan`. Raises `ConfigError` for an ``interval``, which has no end of values."""
        columns = [[f"{key}={text}" for text in values.texts(key)] for key, values in space.items()]
        return list(product(*columns))
