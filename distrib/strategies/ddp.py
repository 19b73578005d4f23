"""Data parallelism by torch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.parallel import DistributedDataParallel

    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter


class DDP(Strategy):
    """Every rank holds the whole model; gradients are all-reduced in buckets during backward.

    Only the backward of a rank's last microbatch communicates, so ranks may run different
    numbers of microbatches.

    Args:
        bucket_mb: size of a gradient bucket in MiB; smaller starts earlier, larger sends less often.
        find_unused_parameters: for models in which some parameters get no gradient in some steps.
    """

    _replica: Replica
    _wrapped: DistributedDataParallel

    def __init__(self, *, bucket_mb: float = 25.0, find_unused_parameters: bool = False) -> None:
        self.bucket_mb = bucket_mb
        self.find_unused_parameters = find_unused_parameters

    def setup(self, job: Job, world: World) -> None:
        from torch.nn.parallel import DistributedDataParallel

        from distrib.parallel.replica import Replica
        from distrib.rendezvous import process_group

        self._world = world
        self._replica = Replica(job, device=world.device)
        process_group(world)
        self._wrapped = DistributedDataParallel(
            self._replica.module,
            bucket_cap_mb=self.bucket_mb,
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
        )

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._world.rank, count=self._world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        # DDP divides the summed gradients by the world size; the factor takes that back.
        return self._replica.train_step(
            microbatches, step, module=self._wrapped, hold_sync=self._wrapped.no_sync, factor=self._world.size
        )

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._replica.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import all_reduce_sums

        return all_reduce_sums(sums, device=self._replica.device)

    def save(self, writer: StateWriter) -> None:
        self._replica.save(writer)

    def load(self, reader: StateReader) -> None:
        self._replica.load(reader)

    def close(self) -> None:
        import torch.distributed as dist

        self.__dict__.pop("_wrapped", None)
        self.__dict__.pop("_replica", None)
        if dist.is_initialized():
            dist.destroy_process_group()
