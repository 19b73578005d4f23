"""The parameter server (Li et al. 2014, OSDI) over torch.distributed's point-to-point messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.state import StateReader, StateWriter
    from distrib.strategies.parameter_server.backup import Backup
    from distrib.strategies.parameter_server.server import Server
    from distrib.strategies.parameter_server.worker import Worker

T = TypeVar("T")


class ParameterServer(Strategy):
    """The last ranks serve: they hold weights and optimizer state, the others send gradients to them.

    Parameters are split over the servers by bytes, large tensors cut. A worker's gradients leave while
    backward still runs and the next weights come in the order in which forward needs them. Gradients are
    clipped by the norm over all servers. A server updates pieces of tensors, so the result is exact for
    optimizers that treat each element alone: SGD, Adam, AdamW, RMSprop, Adagrad; not for those that look
    at a tensor's shape or norm (LAMB, LARS, Adafactor, Muon).

    Args:
        mode: ``sync``: servers add up the workers' gradients of a step and make one update: the
            one-process trajectory.
            ``stale`` **changes the result**: a worker may be ``staleness`` steps ahead of the slowest
            one, so that gradients are computed from weights that lack up to as many updates. There is
            still one update per step, of all workers' gradients. 0 is ``sync``.
            ``async`` **changes the result**: each worker's gradient makes an update of its own, at once;
            no worker waits for another, and nothing bounds how old the weights were that it was
            computed from. Its learning rate is the step's times its share of the step's targets.
            ``average`` **changes the result**: a worker makes optimizer steps of its own, from the mean
            gradient over its share of each global batch, clipped by that gradient's norm. Every
            ``average_every`` steps it sends its parameters and goes on from the workers' mean, in which
            each counts by the targets it has learnt from (McMahan et al. 2017, arXiv:1602.05629). The
            workers' optimizers stay apart; a checkpoint has their mean. Between two exchanges, evaluation and
            checkpoint are of the mean, which nobody goes on from.
        num_servers: parts that the model is cut into, each served by a rank of its own.
        server_backups: 1: the last ``num_servers`` ranks keep the servers' parts a second time, in their
            order; when a server is lost its backup goes on, and no update is lost (`ledger`).
        staleness: of ``mode=stale``, in steps.
        damping: of ``mode=async``: divides the learning rate of a late gradient by how many times older
            its weights were than with equally fast workers (after Zhang et al. 2016, arXiv:1511.05950).
        average_every: of ``mode=average``, in steps (H).
        elastic: of ``mode=average``: instead of the mean, the servers keep a centre of their own; every
            exchange moves the worker's parameters and the centre towards each other by this share of
            their difference, and nobody waits (EASGD, Zhang et al. 2015, arXiv:1412.6651). Evaluation and
            checkpoint are the centre. Null: the mean.
        min_workers: go on with the rest when a worker other than rank 0 is lost, down to this many; the
            gradient is then divided by their targets alone. Null: ``sync`` ends, the others go on with one.
        bucket_mb: size of a message in MiB, over all servers.
        silent_after: seconds after which a rank that says nothing is given up; null:
            ``timeouts.collective``.
    """

    _server: Server | Backup | None = None
    _worker: Worker | None = None

    def __init__(
        self,
        *,
        mode: Literal["sync", "stale", "async", "average"] = "sync",
        num_servers: int = 1,
        server_backups: int = 0,
        staleness: int = 1,
        damping: bool = False,
        average_every: int = 10,
        elastic: float | None = None,
        min_workers: int | None = None,
        bucket_mb: float = 4.0,
        silent_after: float | None = None,
    ) -> None:
        self.mode = mode
        self.num_servers = num_servers
        self.server_backups = server_backups
        self.staleness = staleness
        self.damping = damping
        self.average_every = average_every
        self.elastic = elastic
        self.min_workers = min_workers
        self.bucket_mb = bucket_mb
        self.silent_after = silent_after

    def changes(self) -> str | None:
        exact = self.mode == "sync" or (self.mode == "stale" and self.staleness == 0)
        return None if exact else f"workers wait less for each other (mode={self.mode})"

    def check(self, *, num_processes: int) -> None:
        from distrib.strategies.parameter_server.validation import check

        check(self, num_processes=num_processes)

    def num_workers(self, num_processes: int) -> int:
        """How many ranks train: the first ones."""
        return num_processes - self.num_servers * (1 + self.server_backups)

    def may_lose(self, rank: int, *, num_processes: int) -> bool:
        if rank >= self.num_workers(num_processes):
            return self.server_backups > 0
        return rank > 0 and (self.mode != "sync" or self.min_workers is not None)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        from distrib.strategies.parameter_server import building, validation

        validation.check_precision(job)
        self._world = world
        self._worker, self._server = building.member(self, job, world)

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self._world.rank, count=self.num_workers(self._world.size))

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        return self._working.train_step(microbatches, step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._working.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._working.meet(sums)

    def tally(
        self, sums: Mapping[str, Tensor], *, per_step: Collection[str], votes: Collection[str]
    ) -> dict[str, Tensor]:
        """Waits for nobody: a step's numbers are this worker's, times the number of workers."""
        worker, others = self._working, {name: v for name, v in sums.items() if name not in per_step}
        asks = any(bool(sums[name]) for name in votes)
        total = worker.tally(others, vote=asks)
        own = {name: sums[name].double().cpu() * self.shard.count for name in per_step}
        if not worker.may_stop:
            total |= {name: total[name] * 0.0 for name in votes}
        return {**own, **total}

    def save(self, writer: StateWriter) -> None:
        self._working.save(writer, leads=self._world.rank == 0)

    def load(self, reader: StateReader) -> None:
        self._working.load(reader, leads=self._world.rank == 0)

    def live_step(self) -> int | None:
        return self._working.join() if self._world.rejoin else None

    def measures(self) -> Mapping[str, float]:
        # Taking a server's numbers begins them anew, and rank 0's alone are logged.
        return self._working.measures() if self._world.rank == 0 else {}

    def run(self, body: Callable[[], T]) -> T | None:
        if self._server is not None:
            self._server.serve()
            return None
        value = body()
        self._working.leave()
        return value

    @property
    def _working(self) -> Worker:
        assert self._worker is not None, "a rank that serves does not train"
        return self._worker

    def close(self) -> None:
        self._server = self._worker = None
