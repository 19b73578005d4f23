"""Fully sharded data parallelism by torch's ``fully_shard`` (FSDP2; Zhao et al. 2023, arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter


class FSDP(Strategy):
    """Weights, gradients and optimizer state are split over the ranks; blocks are gathered when needed.

    Every forward and backward pass is collective, so a rank that has fewer microbatches than
    another runs a ghost in place of the missing one.

    Args:
        reshard_after_forward: free gathered weights after forward and gather them again for
            backward: less memory, half as much traffic again.
        shard_size: ranks that share one copy of the model; null: all. A smaller number, which must
            divide the world size, keeps whole copies and adds an all-reduce between them.
        cpu_offload: keep weights, gradients and optimizer state in the host's memory.
    """

    _replica: Replica

    def __init__(
        self, *, reshard_after_forward: bool = True, shard_size: int | None = None, cpu_offload: bool = False
    ) -> None:
        self.reshard_after_forward = reshard_after_forward
        self.shard_size = shard_size
        self.cpu_offload = cpu_offload

    def check(self, *, num_processes: int) -> None:
        if self.shard_size is not None and num_processes % self.shard_size:
            remedy = f"must divide the number of processes, which is {num_processes}"
            raise ConfigError("strategy.shard_size", self.shard_size, remedy)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        if job.precision == "fp16":
            raise ConfigError("precision", "fp16", "strategy=fsdp has no loss scaling; use precision=bf16")
        from distrib.parallel import sharded
        from distrib.parallel.replica import Replica
        from distrib.rendezvous import process_group

        self._world = world
        self._rounds = -(-job.num_microbatches // world.size)
        process_group(world)
        size = self.shard_size or world.size
        mesh = sharded.make_mesh(world.device, num_copies=world.size // size, shard_size=size)
        self._replica = Replica(
            job,
            device=world.device,
            place=partial(
                sharded.shard_model,
                mesh=mesh,
                device=world.device,
                reshard_after_forward=self.reshard_after_forward,
                cpu_offload=self.cpu_offload,
            ),
            total_norm=partial(sharded.total_norm, group=mesh.get_group("shard")),
            local=sharded.local,
        )

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._world.rank, count=self._world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        from distrib.parallel.sharded import pad_with_ghosts

        return self._replica.train_step(pad_with_ghosts(microbatches, count=self._rounds), step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._replica.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import all_reduce_sums

        return all_reduce_sums(sums, device=self._replica.device)

    def save(self, writer: StateWriter) -> None:
        from distrib.parallel.sharded import save_sharded

        self._replica.save(writer, save_state=save_sharded)

    def load(self, reader: StateReader) -> None:
        from distrib.parallel.sharded import load_sharded

        self._replica.load(reader, load_state=load_sharded)

    def close(self) -> None:
        import torch.distributed as dist

        self.__dict__.pop("_replica", None)
        if dist.is_initialized():
            dist.destroy_process_group()
