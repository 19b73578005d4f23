"""One process: the reference that every synchronous strategy is equal to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter


class Single(Strategy):
    """Trains on one process and talks to nobody."""

    _replica: Replica

    def check(self, *, num_processes: int) -> None:
        if num_processes != 1:
            remedy = f"is for one process, not {num_processes}; use strategy=ddp"
            raise ConfigError("strategy", "single", remedy)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        from distrib.parallel.replica import Replica

        self._replica = Replica(job, device=world.device)

    @property
    def shard(self) -> DataShard:
        return DataShard(index=0, count=1)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        return self._replica.train_step(microbatches, step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._replica.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import flatten, unflatten

        return unflatten(flatten(sums), sums)

    def save(self, writer: StateWriter) -> None:
        self._replica.save(writer)

    def load(self, reader: StateReader) -> None:
        self._replica.load(reader)

    def weights(self) -> Mapping[str, Tensor]:
        return self._replica.weights()

    def close(self) -> None:
        self.__dict__.pop("_replica", None)
