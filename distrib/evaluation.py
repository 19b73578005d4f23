"""An evaluation over all ranks, whole even where one of them is lost in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from distrib.core import Batch, DataShard
from distrib.strategies.base import Strategy
from distrib.tasks.base import Report

if TYPE_CHECKING:
    from torch import Tensor

CAME = "came"
"""Beside the task's sums: an entry for each shard, above 0 where its sums are in."""


class Batches(Protocol):
    """Of every held-out example once over all shards."""

    def __call__(self, *, shard: DataShard) -> Iterable[Batch]:
        """One shard's."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The task's side of an evaluation, bound to its data."""

    zeros: Callable[[], dict[str, Tensor]]
    batches: Batches
    report: Callable[[Mapping[str, Tensor]], Report]

    def run(self, strategy: Strategy) -> Report:
        """Covers every example once: what a rank had that was lost meanwhile, the others share out.

        Called on all ranks that train.
        """
        own, total = strategy.shard, self.zeros()
        shares = {index: [DataShard(index=index, count=own.count)] for index in range(own.count)}
        while shares:
            sums = self._sums(strategy, shares.get(own.index, []))
            added = strategy.reduce({**sums, CAME: self._came(own)})
            there = [index for index, came in enumerate(added.pop(CAME).tolist()) if came > 0]
            for name, value in added.items():
                total[name] += value
            lost = [shard for index, shards in shares.items() if index not in there for shard in shards]
            shares = dealt(lost, among=there)
        return self.report(total)

    def _sums(self, strategy: Strategy, shards: Iterable[DataShard]) -> dict[str, Tensor]:
        sums = self.zeros()
        for shard in shards:
            for batch in self.batches(shard=shard):
                for name, value in strategy.eval_step(batch).items():
                    sums[name] += value.to(sums[name].device)
        return sums

    def _came(self, own: DataShard) -> Tensor:
        import torch

        came = torch.zeros(own.count, dtype=torch.float64)
        came[own.index] = 1.0
        return came


def dealt(shards: Sequence[DataShard], *, among: Sequence[int]) -> dict[int, list[DataShard]]:
    """By rank, its part of every one of ``shards``, which are cut into as many; empty: there are none."""
    if not shards:
        return {}
    return {
        index: [DataShard(index=s.index + s.count * place, count=s.count * len(among)) for s in shards]
        for place, index in enumerate(among)
    }
