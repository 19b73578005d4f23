"""An evaluation covers every example once, whichever ranks are lost in it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from distrib.core import Batch, DataShard
from distrib.evaluation import Evaluation
from distrib.tasks.base import Report
from distrib.testing.fake import Fake

NUM_BATCHES = 11
TIMEOUT = 20.0


class Ranks:
    """Ranks that meet; those that have died are waited for no more."""

    def __init__(self, size: int) -> None:
        self.living, self.came, self.round = set(range(size)), dict[int, dict[str, Tensor]](), 0
        self.total: dict[str, Tensor] = {}
        self.changed = threading.Condition()

    def meet(self, rank: int, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self.changed:
            mine = self.round
            self.came[rank] = dict(sums)
            self.end_round_if_all_came()
            assert self.changed.wait_for(lambda: self.round > mine, TIMEOUT)
            return {name: value.clone() for name, value in self.total.items()}

    def die(self, rank: int) -> None:
        with self.changed:
            self.living.discard(rank)
            self.end_round_if_all_came()

    def end_round_if_all_came(self) -> None:
        if self.came.keys() == self.living:
            each = list(self.came.values())
            self.total = {name: torch.stack([sums[name] for sums in each]).sum(0) for name in each[0]}
            self.came, self.round = {}, self.round + 1
            self.changed.notify_all()


class DiedError(Exception):
    """A rank's end."""


class One(Fake):
    """A rank that dies when it is to meet the others for the ``dies_at``-th time."""

    def __init__(self, ranks: Ranks, *, rank: int, dies_at: int | None) -> None:
        super().__init__()
        self.ranks, self.rank, self.left = ranks, rank, dies_at
        self.size = len(ranks.living)

    @property
    def shard(self) -> DataShard:
        return DataShard(index=self.rank, count=self.size)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        seen = torch.zeros(NUM_BATCHES, dtype=torch.float64)
        seen[batch.index] = 1.0
        return {"seen": seen}

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.ranks.die(self.rank)
                raise DiedError
        return self.ranks.meet(self.rank, sums)


def batches(*, shard: DataShard) -> Iterable[Batch]:
    for index in range(shard.index, NUM_BATCHES, shard.count):
        yield Batch(tensors={}, index=index, step_targets=1)


@pytest.mark.parametrize("dying", [{}, {1: 0}, {1: 0, 3: 0}, {1: 0, 2: 1}, {1: 0, 2: 1, 3: 2}])
def test_what_lost_ranks_had_is_evaluated_by_the_others(dying: dict[int, int]) -> None:
    """Also where one is lost while it makes up for another."""
    ranks, reports = Ranks(4), dict[int, Report]()
    evaluation = Evaluation(
        zeros=lambda: {"seen": torch.zeros(NUM_BATCHES, dtype=torch.float64)},
        batches=batches,
        report=lambda sums: Report(metrics={str(i): x for i, x in enumerate(sums["seen"].tolist())}),
    )

    def run(one: One) -> None:
        with suppress(DiedError):
            reports[one.rank] = evaluation.run(one)

    strategies = [One(ranks, rank=rank, dies_at=dying.get(rank)) for rank in range(4)]
    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in strategies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert reports.keys() == set(range(4)) - dying.keys()
    for report in reports.values():
        assert report.metrics == {str(index): 1.0 for index in range(NUM_BATCHES)}
