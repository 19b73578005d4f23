"""Data parallelism by Horovod (Sergeev and Del Balso 2018, arXiv:1802.05799)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.parallel.replica import Replica
    from distrib.state import StateReader, StateWriter
    from distrib.strategies.horovod.elastic import Elastic, Fixed
    from distrib.strategies.horovod.exchange import Exchange

T = TypeVar("T")

OPERATIONS = ("sum", "average", "adasum")
COMPRESSIONS = ("none", "fp16")
TIMELINE = "horovod-timeline.json"


class Horovod(Strategy):
    """Every rank holds the whole model; Horovod all-reduces gradients while backward still runs.

    Only the backward of a rank's last microbatch communicates, so ranks may run different
    numbers of microbatches. Two options change the mathematics: ``op=adasum`` (Maleki et al. 2020,
    arXiv:2006.02924) adds up what is orthogonal in the ranks' gradients and averages what is
    parallel, so that the update depends on the number of ranks; ``compression=fp16`` rounds what
    is sent to 11 bits and loses what is below 6e-8.

    Args:
        op: ``sum``; ``average``, the same result by Horovod's own division; or ``adasum``, which
            needs the MPI controller and a power of two ranks.
        compression: ``none`` or ``fp16``. Horovod sends no bf16.
        fusion_threshold_mb: MiB of gradients that travel as one message; null: Horovod's own, 128.
        cycle_time_ms: how often the ranks agree on what is ready; null: Horovod's own, 1 ms.
        timeline: record what tensors waited for in ``logs/horovod-timeline.json``, for chrome://tracing.
        find_unused_parameters: for models in which some parameters get no gradient in some steps.
        elastic: go on when a rank dies and take in those that come, under horovodrun with
            ``--host-discovery-script`` and with ``run_dir`` given. The global batch and the order of the
            data stay; the losses of at most the last second before a rank died are not logged.
    """

    _replica: Replica
    _exchange: Exchange
    _ranks: Fixed | Elastic
    _started: bool

    def __init__(
        self,
        *,
        op: str = "sum",
        compression: str = "none",
        fusion_threshold_mb: float | None = None,
        cycle_time_ms: float | None = None,
        timeline: bool = False,
        find_unused_parameters: bool = False,
        elastic: bool = False,
    ) -> None:
        _one_of(op, OPERATIONS, key="strategy.op")
        _one_of(compression, COMPRESSIONS, key="strategy.compression")
        _not_negative(fusion_threshold_mb, key="strategy.fusion_threshold_mb")
        _not_negative(cycle_time_ms, key="strategy.cycle_time_ms")
        self.op = op
        self.compression = compression
        self.fusion_threshold_mb = fusion_threshold_mb
        self.cycle_time_ms = cycle_time_ms
        self.timeline = timeline
        self.find_unused_parameters = find_unused_parameters
        self.elastic = elastic

    def changes(self) -> str | None:
        sent = None if self.compression == "none" else f"gradients are sent as {self.compression}"
        return "Adasum weighs the ranks' gradients" if self.op == "adasum" else sent

    def check(self, *, num_processes: int) -> None:
        if self.op == "adasum" and num_processes & (num_processes - 1):
            remedy = f"takes a power of two processes, not {num_processes}; use strategy.op=sum"
            raise ConfigError("strategy.op", "adasum", remedy)

    def setup(self, job: Job, world: World) -> None:
        from distrib.strategies.horovod import engine

        self.check(num_processes=world.size)
        engine.check(world, adasum=self.op == "adasum", elastic=self.elastic)
        options = _options(self, world)
        from distrib.parallel.replica import Replica
        from distrib.strategies.horovod.elastic import Elastic, Fixed
        from distrib.strategies.horovod.exchange import Exchange

        self._replica = Replica(job, device=world.device)
        self._started = True
        engine.start(world, options=options)
        self._exchange = Exchange(
            {name: p for name, p in self._replica.module.named_parameters() if p.requires_grad},
            op=self.op,
            compression=self.compression,
            find_unused_parameters=self.find_unused_parameters,
        )
        if self.elastic:
            self._ranks = Elastic(self._replica, self._exchange, world=world, options=options)
        else:
            self._ranks = Fixed(self._replica, world=world)

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._ranks.world.rank, count=self._ranks.world.size)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        # Averaging divides by the world size, and Adasum averages gradients that agree; both are
        # therefore given each rank's gradient as if all the others had found the same.
        train = partial(
            self._replica.train_step,
            microbatches,
            step,
            hold_sync=self._exchange.hold,
            finish_sync=self._exchange.finish,
            factor=1.0 if self.op == "sum" else self.shard.count,
        )
        return self._ranks.train_step(step, train)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._replica.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.parallel.reduce import flatten, unflatten

        return unflatten(self._ranks.add_up(flatten(sums)), sums)

    def save(self, writer: StateWriter) -> None:
        self._replica.save(writer)

    def load(self, reader: StateReader) -> None:
        self._replica.load(reader)

    def live_step(self) -> int | None:
        return self._ranks.live_step

    def current_world(self, world: World) -> World:
        return self._ranks.world

    def run(self, body: Callable[[], T]) -> T | None:
        return self._ranks.run(body)

    def close(self) -> None:
        self.__dict__.pop("_ranks", None)
        self.__dict__.pop("_exchange", None)
        self.__dict__.pop("_replica", None)
        if self.__dict__.pop("_started", False):
            from distrib.strategies.horovod import engine

            engine.stop()


def _options(given: Horovod, world: World) -> dict[str, str]:
    """Horovod's settings, in the variables it reads them from when it starts."""
    from distrib.strategies.horovod import engine

    options = {
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(1, int(world.collective_timeout))),
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(max(1, int(world.collective_timeout))),
    }
    if given.fusion_threshold_mb is not None:
        options[engine.FUSION] = str(int(given.fusion_threshold_mb * 2**20))
    if given.cycle_time_ms is not None:
        options["HOROVOD_CYCLE_TIME"] = str(given.cycle_time_ms)
    if given.timeline:
        if world.log is None:
            raise ConfigError("strategy.timeline", "true", "needs a run directory to write into")
        world.log.parent.mkdir(parents=True, exist_ok=True)
        options["HOROVOD_TIMELINE"] = str(world.log.with_name(TIMELINE))
    return options


def _one_of(value: str, known: Sequence[str], *, key: str) -> None:
    if value not in known:
        raise ConfigError(key, value, f"is one of {', '.join(known)}")


def _not_negative(value: float | None, *, key: str) -> None:
    if value is not None and not value >= 0:
        raise ConfigError(key, value, "must not be negative; null leaves it to Horovod")
