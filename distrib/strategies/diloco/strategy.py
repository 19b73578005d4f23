"""Distributed Low-Communication training (Douillard et al. 2023, arXiv:2311.08105), and local SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.state import StateReader, StateWriter
    from distrib.strategies.diloco.session import Session


class DiLoCo(Strategy):
    """Replicas train apart and agree every ``sync_every`` steps: that many times fewer bytes than DDP.

    **Changes the result.** A replica takes its share of each global batch and makes its own optimizer
    step from the mean gradient over that share, clipped by that gradient's own norm. After ``sync_every``
    steps (H in the paper) the replicas' mean movement, each counting by the targets it has learnt from,
    is the gradient of one step of SGD with Nesterov momentum (the outer optimizer), and all go on from
    there. The inner optimizers' state stays apart. With ``sync_every=1``, ``outer_lr=1``,
    ``outer_momentum=0``, ``quantize=none`` and plain SGD that does not clip it is DDP. A gradient that is
    not finite makes its own replica skip the step. The loss is that of all replicas, the gradient norm
    rank 0's replica's.

    Between two exchanges, evaluation and ``model/`` of a checkpoint are the mean of the replicas'
    weights; training goes on from each replica's own, so neither changes it. The checkpoint holds the outer
    momentum and each replica's state, from which as many replicas go on as if unbroken; others go on from
    ``model/``, the mean of the optimizers' state and the outer momentum.

    Args:
        inner: the strategy of a replica: ``Single``, or ``DDP`` or ``FSDP`` over ``replica_size`` ranks.
        sync_every: optimizer steps between two exchanges of a parameter.
        replica_size: ranks that train one replica together; neighbours by rank.
        outer_lr: rate of the outer optimizer; 1 with no momentum is the mean of the weights (local SGD).
        outer_momentum: its Nesterov momentum; 0: none.
        quantize: what is sent of a movement, added up in full precision. ``bf16`` halves the bytes.
            ``int8`` quarters them: each replica's is off by 1/254 of the largest of 256 neighbours at
            most, and so is the mean.
        num_fragments: parts into which the parameters are cut, exchanged one after another (Streaming
            DiLoCo, Douillard et al. 2025, arXiv:2501.18512): the bytes are as many, the peak is lower.
        overlap: steps trained while an exchange is under way; 0: training waits for it.
        keep_local: what stays of a replica's own weights when an exchange ends ``overlap`` steps late;
            the rest is what was agreed on.
    """

    _session: Session

    def __init__(
        self,
        *,
        inner: Strategy,
        sync_every: int = 50,
        replica_size: int = 1,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        quantize: Literal["none", "bf16", "int8"] = "none",
        num_fragments: int = 1,
        overlap: int = 0,
        keep_local: float = 0.5,
    ) -> None:
        self.inner = inner
        self.sync_every = sync_every
        self.replica_size = replica_size
        self.outer_lr = outer_lr
        self.outer_momentum = outer_momentum
        self.quantize: Literal["none", "bf16", "int8"] = quantize
        self.num_fragments = num_fragments
        self.overlap = overlap
        self.keep_local = keep_local

    def changes(self) -> str | None:
        return "replicas train apart between exchanges"

    def check(self, *, num_processes: int) -> None:
        from distrib.strategies.diloco.validation import check

        check(self, num_processes=num_processes)
        self.inner.check(num_processes=self.replica_size)

    def setup(self, job: Job, world: World) -> None:
        self.check(num_processes=world.size)
        from distrib.strategies.diloco.rounds import Rounds
        from distrib.strategies.diloco.session import Session

        rounds = Rounds(sync_every=self.sync_every, num_fragments=self.num_fragments, overlap=self.overlap)
        self._session = Session(world, inner=self.inner, replica_size=self.replica_size, rounds=rounds)
        self._session.begin(
            job,
            quantize=self.quantize,
            lr=self.outer_lr,
            momentum=self.outer_momentum,
            keep_local=self.keep_local,
        )

    @property
    def shard(self) -> DataShard:
        return self._session.shard

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        return self._session.train_step(microbatches, step)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._session.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._session.reduce(sums)

    def save(self, writer: StateWriter) -> None:
        self._session.save(writer)

    def load(self, reader: StateReader) -> None:
        self._session.load(reader)

    def measures(self) -> Mapping[str, float]:
        return {**self._session.outer.measures(), **self.inner.measures()}

    def close(self) -> None:
        if (session := self.__dict__.pop("_session", None)) is not None:
            session.close()
        self.inner.close()
