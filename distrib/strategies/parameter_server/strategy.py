"""The parameter server (Li et al. 2014, OSDI) over torch.distributed's point-to-point messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.strategies.parameter_server import validation
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

    Parameters are split over the servers by bytes, large tensors cut. Gradients leave while backward runs,
    weights come in the order in which forward needs them, the clip's norm is over all servers. Pieces of
    tensors are updated, which is exact for optimizers that treat each element alone (SGD, Adam, AdamW,
    RMSprop, Adagrad) and not for those that look at a whole tensor (LAMB, LARS, Adafactor, Muon).

    Args:
        mode: ``sync``: one update by the sum of the workers' gradients: the one-process trajectory.
            ``stale`` **changes the result**: a worker may be ``staleness`` steps ahead of the slowest, so
            that gradients lack up to as many updates; still one update per step, of all. 0 is ``sync``.
            ``async`` **changes the result**: each worker's gradient makes an update of its own, at once;
            nobody waits, and nothing bounds how old the weights were that it was computed from. Its
            learning rate is the step's times its share of the step's targets.
            ``average`` **changes the result**: a worker makes optimizer steps of its own, by the mean
            gradient over its share of each global batch, clipped by its norm. Every ``average_every`` steps
            it goes on from the workers' mean parameters, in which each counts by the targets it has learnt
            from (McMahan et al. 2017, arXiv:1602.05629). Optimizers stay apart; a checkpoint has their
            mean. Between two exchanges evaluation and checkpoint are of the mean, which nobody goes on from.
        num_servers: parts that the model is cut into, each served by a rank of its own.
        server_backups: 1: the last ``num_servers`` ranks are backups, in the servers' order. No update is
            known before the backup has it. When a server is lost its backup goes on, with every update; the
            server, started again (``launcher.rejoins``), becomes the backup.
        staleness, average_every: of ``mode=stale`` and of ``mode=average`` (H), in steps.
        damping: of ``mode=async``: divides the learning rate of a late gradient by how many times older
            its weights were than with equally fast workers (after Zhang et al. 2016, arXiv:1511.05950).
        elastic: of ``mode=average``: the servers keep a centre, not the mean; an exchange moves it and the
            worker's parameters towards each other by this share of their difference, and nobody waits
            (EASGD, Zhang et al. 2015, arXiv:1412.6651). Evaluation and checkpoint are the centre.
        min_workers: go on with the rest when a worker other than rank 0 is lost, down to this many; the
            gradient is divided by their targets alone. Null: ``sync`` ends, the others go on with one.
        balance: ``measured``: workers get microbatches by measured speed, a lost one's go to the others.
            ``sync`` runs that step again, so that nothing is changed; ``stale`` lacks them for a few steps.
        compression: what is sent of a gradient. All but ``none`` **change the result**, the clip's norm is of
            what arrives. ``bf16``, ``fp16``: each worker's gradient rounded once, to 8 or 11 bits (fp16: a
            step with an element above 65504 is skipped). ``topk``: each message's largest elements and their
            places; the rest is added to the worker's next gradient (Stich et al. 2018, arXiv:1809.07599):
            lost with a worker that dies, in a checkpoint for as many workers. Not of ``mode=average``.
        topk_share: of the elements, above 0; twice as much of the bytes in fp32.
        bucket_mb: size of a message in MiB, over all servers.
        silent_after: seconds until a rank that says nothing is given up; null: ``timeouts.collective``.
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
        balance: Literal["none", "measured"] = "none",
        compression: Literal["none", "bf16", "fp16", "topk"] = "none",
        topk_share: float = 0.01,
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
        self.balance = balance
        self.compression = compression
        self.topk_share = topk_share
        self.bucket_mb = bucket_mb
        self.silent_after = silent_after

    def changes(self) -> str | None:
        return validation.changes(self)

    def check(self, *, num_processes: int) -> None:
        validation.check(self, num_processes=num_processes)

    def num_workers(self, num_processes: int) -> int:
        """How many ranks train: the first ones."""
        return num_processes - self.num_servers * (1 + self.server_backups)

    def may_lose(self, rank: int, *, num_processes: int) -> bool:
        if self.serves(rank, num_processes=num_processes):
            return self.server_backups > 0
        return rank > 0 and (self.mode != "sync" or self.min_workers is not None)

    def serves(self, rank: int, *, num_processes: int) -> bool:
        return rank >= self.num_workers(num_processes)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        from distrib.strategies.parameter_server import building

        validation.check_job(job)
        self._world = world
        self._worker, self._server = building.member(self, job, world)

    @property
    def shard(self) -> DataShard:
        return self._working.shard

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        return self._working.train_step(microbatches, step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._working.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._working.meet(sums)

    def tally(
        self, sums: Mapping[str, Tensor], *, per_step: Collection[str], votes: Collection[str]
    ) -> dict[str, Tensor]:
        return self._working.tally(sums, per_step=per_step, votes=votes)

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
            return self._server.serve()
        value = body()
        self._working.leave()
        return value

    @property
    def _working(self) -> Worker:
        assert self._worker is not None, "a rank that serves does not train"
        return self._worker

    def close(self) -> None:
        self._server = self._worker = None
