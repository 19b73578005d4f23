"""Fully sharded data parallelism by torch's ``fully_shard`` (FSDP2; Zhao et al. 2023, arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from distrib.core import Batch, DataShard, Job, PrecisionName, StepResult
from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter


class FSDP(Strategy):
    """Weights, gradients and optimizer state are split over the ranks; blocks are gathered when needed.

    Every forward and backward pass is collective, so a rank that has fewer microbatches than
    another runs a ghost in place of the missing one. Each round of microbatches gathers the weights
    and scatters the gradient anew, so the fewest bytes are sent with the largest microbatch that fits.

    Args:
        reshard_after_forward: free a block's gathered weights after its forward and gather them again
            for backward: less memory, half as much traffic again.
        shard_size: ranks that share one copy of the model; null: all. A smaller number, which must
            divide the world size, keeps whole copies and adds an all-reduce between them.
        cpu_offload: keep weights, gradients and optimizer state in the host's memory. Changes nothing
            where the device is the CPU.
        param_dtype: ``bf16`` gathers weights as bfloat16, which halves that traffic, and needs
            precision=bf16. **Changes the result** beyond autocast: all of the forward pass computes
            with weights rounded to 8 bits of precision, norms and the sum over blocks included. The
            weights the optimizer updates stay fp32, and so do the gradients that are summed.
    """

    _replica: Replica

    def __init__(
        self,
        *,
        reshard_after_forward: bool = True,
        shard_size: int | None = None,
        cpu_offload: bool = False,
        param_dtype: Literal["bf16"] | None = None,
    ) -> None:
        self.reshard_after_forward = reshard_after_forward
        self.shard_size = shard_size
        self.cpu_offload = cpu_offload
        self.param_dtype = param_dtype

    def check(self, *, num_processes: int) -> None:
        if self.shard_size is None:
            return
        if self.shard_size < 1 or num_processes % self.shard_size:
            remedy = f"must divide the number of processes, which is {num_processes}"
            raise ConfigError("strategy.shard_size", self.shard_size, remedy)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        self._check_precision(job.precision)
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
            place=partial(self._place, mesh=mesh),
            total_norm=partial(sharded.total_norm, group=mesh.get_group("shard")),
            local=sharded.local,
        )

    def _check_precision(self, precision: PrecisionName) -> None:
        if precision == "fp16":
            raise ConfigError("precision", precision, "strategy=fsdp has no loss scaling; use precision=bf16")
        if self.param_dtype is not None and precision != "bf16":
            raise ConfigError(
                "strategy.param_dtype",
                self.param_dtype,
                f"computes in bfloat16, but precision={precision}; use precision=bf16 or null here",
            )

    def _place(self, model: nn.Module, *, mesh: DeviceMesh) -> nn.Module:
        import torch

        from distrib.parallel.sharded import shard_model

        return shard_model(
            model,
            mesh=mesh,
            device=self._world.device,
            reshard_after_forward=self.reshard_after_forward,
            cpu_offload=self.cpu_offload,
            param_dtype=torch.bfloat16 if self.param_dtype else None,
        )

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._world.rank, count=self._world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        from distrib.parallel.sharded import pad_with_ghosts

        return self._replica.train_step(pad_with_ghosts(microbatches, count=self._rounds), step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        import torch

        # Weights first gathered under inference_mode could not be trained afterwards.
        return self._replica.eval_step(batch, no_grad=torch.no_grad)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import all_reduce_sums

        return all_reduce_sums(sums, device=self._replica.device)

    def save(self, writer: StateWriter) -> None:
        from distrib.parallel.sharded import save_sharded

        self._replica.save(writer, save_state=save_sharded)

    def load(self, reader: StateReader) -> None:
        from distrib.parallel.sharded import load_sharded

        self._replica.load(reader, load_state=load_sharded)

    def weights(self) -> Mapping[str, Tensor]:
        from distrib.parallel.sharded import local, reshard

        reshard(self._replica.module)
        return {name: local(weight) for name, weight in self._replica.weights().items()}

    def close(self) -> None:
        import torch.distributed as dist

        self.__dict__.pop("_replica", None)
        if dist.is_initialized():
            dist.destroy_process_group()
