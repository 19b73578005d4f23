"""ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) by DeepSpeed's own engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.strategies.deepspeed.settings import Offload, check_precision, check_settings, engine_config
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.state import StateReader, StateWriter


class DeepSpeed(Strategy):
    """Optimizer state, from stage 2 gradients too, and at stage 3 weights too are split over the ranks.

    Backward is collective from stage 2 on, so a rank that has fewer microbatches than another runs
    a ghost in place of the missing one. A parameter that gets no gradient in a step counts as one
    with gradient zero: the optimizer's momentum and weight decay still move it.

    Args:
        stage: 1, 2 or 3.
        offload: what is kept in the host's memory: none, optimizer (state), parameters (stage 3; both).
        config: keys of DeepSpeed's JSON configuration, which DeepSpeed validates. What our own
            configuration decides (batch, accumulation, clipping, precision, optimizer) is refused here.
    """

    _engine: Any

    def __init__(
        self, *, stage: int = 2, offload: Offload = "none", config: Mapping[str, Any] | None = None
    ) -> None:
        self.stage = stage
        self.offload = offload
        self.config = config or {}
        self._taken = ExitStack()

    def check(self, *, num_processes: int) -> None:
        check_settings(self.config, stage=self.stage, offload=self.offload)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        check_precision(job.precision)
        from distrib.strategies.deepspeed.engine import start
        from distrib.strategies.deepspeed.session import connect, prepare
        from distrib.strategies.deepspeed.validation import validate

        config = engine_config(
            self.config,
            stage=self.stage,
            offload=self.offload,
            precision=job.precision,
            max_grad_norm=job.max_grad_norm,
        )
        self._job, self._world = job, world
        prepare(world, taken=self._taken)
        validate(config, own=self.config)
        connect(world, taken=self._taken)
        self._engine = start(job, world, config)
        self._taken.callback(self._engine.destroy)

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._world.rank, count=self._world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        from distrib.parallel.sharded import pad_with_ghosts
        from distrib.strategies.deepspeed.engine import train_step

        if self.stage > 1:
            rounds = -(-self._job.num_microbatches // self._world.size)
            microbatches = pad_with_ghosts(microbatches, count=rounds)
        return train_step(self._engine, microbatches, job=self._job, world=self._world, step=step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        from distrib.strategies.deepspeed.engine import eval_step

        return eval_step(self._engine, batch, job=self._job, world=self._world)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        from distrib.parallel.reduce import all_reduce_sums

        return all_reduce_sums(sums, device=torch.device(self._world.device))

    def save(self, writer: StateWriter) -> None:
        from distrib.strategies.deepspeed.state import save

        save(writer, self._engine, stage=self.stage)

    def load(self, reader: StateReader) -> None:
        from distrib.strategies.deepspeed.state import load

        load(reader, self._engine, stage=self.stage)

    def close(self) -> None:
        self.__dict__.pop("_engine", None)
        self._taken.close()
