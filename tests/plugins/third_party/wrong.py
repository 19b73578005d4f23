"""A strategy with the most common mistake: each rank divides by the targets it has itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distrib.core import Batch, StepResult
from distrib.strategies.ddp import DDP

if TYPE_CHECKING:
    from distrib.core import Job
    from distrib.world import World


class LocalMean(DDP):
    """The sum over ranks of each rank's mean, in place of the mean over the global batch."""

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        local = sum(int((batch.tensors["labels"] >= 0).sum()) for batch in microbatches)
        return super().train_step([replace(batch, step_targets=local) for batch in microbatches], step)


class Fails(DDP):
    """Dies in its first step."""

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        raise RuntimeError("this strategy was made to fail")


class NotInstalled(DDP):
    """Needs an engine that nobody has."""

    def setup(self, job: Job, world: World) -> None:
        from distrib.errors import MissingDependencyError

        raise MissingDependencyError("warpdrive", extra="warp", needed_for="strategy=not_installed")
