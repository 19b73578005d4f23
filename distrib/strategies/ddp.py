"""Data parallelism by torch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.parallel import DistributedDataParallel

    from distrib.parallel.balance import Balancer
    from distrib.parallel.compression import PowerSGD
    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter


class DDP(Strategy):
    """Every rank holds the whole model; gradients are all-reduced in buckets during backward.

    Only the backward of a rank's last microbatch communicates, so ranks may run different
    numbers of microbatches.

    Args:
        bucket_mb: size of a gradient bucket in MiB; smaller starts earlier, larger sends less often.
        find_unused_parameters: for models in which some parameters get no gradient in some steps.
        compression: what is sent of a gradient. All but ``none`` **change the result**.
            ``bf16``: half the bytes; every element is rounded to 8 bits of precision, by each rank
            and after each addition: with N ranks an error of at most about (N + 1) 2^-8 times the sum
            of the ranks' absolute values.
            ``fp16``: half the bytes, 11 bits; elements below 6e-8 vanish, those above 65504 make the
            step one that is skipped.
            ``powersgd``: for a matrix of n x m the share ``powersgd_rank`` (n + m) / nm of the bytes
            (Vogels et al. 2019, arXiv:1905.13727); what it loses is added to the next step's gradient,
            and is part of the checkpoint for as many processes as saved it.
        powersgd_rank: columns of a factor: more is more exact and sends more.
        powersgd_start: optimizer steps at the beginning of training that send whole gradients.
        balance: ``measured`` gives ranks microbatches by how fast they run them, which changes nothing but
            the time. A step takes at most 1 + (N - 1) / M times what the added speeds of N ranks allow
            for M microbatches, besides the update and what communication is not hidden.
    """

    _replica: Replica
    _wrapped: DistributedDataParallel
    _powersgd: PowerSGD | None = None
    _balancer: Balancer | None = None

    def __init__(
        self,
        *,
        bucket_mb: float = 25.0,
        find_unused_parameters: bool = False,
        compression: Literal["none", "bf16", "fp16", "powersgd"] = "none",
        powersgd_rank: int = 4,
        powersgd_start: int = 10,
        balance: Literal["none", "measured"] = "none",
    ) -> None:
        self.bucket_mb = bucket_mb
        self.find_unused_parameters = find_unused_parameters
        self.compression = compression
        self.powersgd_rank = powersgd_rank
        self.powersgd_start = powersgd_start
        self.balance = balance

    def changes(self) -> str | None:
        return None if self.compression == "none" else f"gradients are sent as {self.compression}"

    def check(self, *, num_processes: int) -> None:
        if self.powersgd_rank < 1:
            raise ConfigError("strategy.powersgd_rank", self.powersgd_rank, "must be 1 or more")

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        if self.compression == "powersgd" and job.precision == "fp16":
            remedy = "its loss scale changes from step to step, and the kept errors with it; use bf16"
            raise ConfigError("precision", job.precision, f"not with strategy.compression=powersgd: {remedy}")
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
        self._compress()
        if self.balance == "measured":
            from distrib.parallel.balance import Balancer

            self._balancer = Balancer(
                rank=world.rank, size=world.size, device=self._replica.device, prefetch=job.prefetch
            )
            self._replica.forward_context = self._balancer.watched(self._replica.forward_context)

    def _compress(self) -> None:
        if self.compression == "none":
            return
        from distrib.parallel.compression import PowerSGD, send_half

        if self.compression != "powersgd":
            send_half(self._wrapped, self.compression)
            return
        self._powersgd = PowerSGD(self._replica.module, rank=self.powersgd_rank, start=self.powersgd_start)
        self._powersgd.attach(self._wrapped)

    @property
    def shard(self) -> DataShard:
        if self._balancer is not None:
            return self._balancer.shard
        return DataShard(index=self._world.rank, count=self._world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        if self._powersgd is not None:
            self._powersgd.step = step
        # DDP divides the summed gradients by the world size; the factor takes that back.
        result = self._replica.train_step(
            microbatches, step, module=self._wrapped, hold_sync=self._wrapped.no_sync, factor=self._world.size
        )
        if self._powersgd is not None and not result.updated:
            self._powersgd.forget()
        if self._balancer is not None:
            self._balancer.step_done(step)
        return result

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._replica.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import all_reduce_sums

        return all_reduce_sums(sums, device=self._replica.device)

    def save(self, writer: StateWriter) -> None:
        self._replica.save(writer)
        if self._powersgd is not None:
            self._powersgd.save(writer)

    def load(self, reader: StateReader) -> None:
        self._replica.load(reader)
        if self._powersgd is not None:
            self._powersgd.load(reader)

    def measures(self) -> Mapping[str, float]:
        return {} if self._balancer is None else self._balancer.measures()

    def weights(self) -> Mapping[str, Tensor]:
        return self._replica.weights()

    def close(self) -> None:
        import torch.distributed as dist

        self.__dict__.pop("_balancer", None)
        self.__dict__.pop("_powersgd", None)
        self.__dict__.pop("_wrapped", None)
        self.__dict__.pop("_replica", None)
        if dist.is_initialized():
            dist.destroy_process_group()
