"""Any strategy, with a stopwatch: what `distrib compare` runs in place of the strategy itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.proof.sockets import SentBytes
    from distrib.state import StateReader, StateWriter

T = TypeVar("T")

MEMORY_STEP = 1
"""The second step: the optimizer has its slots by then."""
WARM_UP = 2
"""Steps that are not timed: the first allocates, the second is looked at."""


class Measured(Strategy):
    """Hands everything to ``inner`` and writes ``measured-<rank>.json`` into ``folder`` when closed.

    Args:
        inner: the strategy measured.
        folder: where the numbers go.
    """

    def __init__(self, *, inner: Strategy, folder: str) -> None:
        self.inner = inner
        self.folder = folder
        self._rank: int | None = None
        self._steps = 0
        self._walls: list[float] = []
        self._busy: list[float] = []
        self._counter: SentBytes | None = None
        self._sent: list[int | None] = []
        self._memory: dict[str, int] = {}

    def check(self, *, num_processes: int) -> None:
        self.inner.check(num_processes=num_processes)

    def may_lose(self, rank: int, *, num_processes: int) -> bool:
        return self.inner.may_lose(rank, num_processes=num_processes)

    def serves(self, rank: int, *, num_processes: int) -> bool:
        return self.inner.serves(rank, num_processes=num_processes)

    def setup(self, job: Job, world: World) -> None:
        self.inner.setup(job, world)
        self._rank = world.rank

    @property
    def shard(self) -> DataShard:
        return self.inner.shard

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        self._steps += 1
        if self._steps == MEMORY_STEP + 1:
            return self._step_watched(microbatches, step)
        if self._steps <= WARM_UP:
            return self.inner.train_step(microbatches, step)
        return self._step_timed(microbatches, step)

    def _step_watched(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        from distrib.proof.memory import MemoryWatch
        from distrib.proof.sockets import SentBytes

        watch = MemoryWatch()
        with watch.watching():
            result = self.inner.train_step(microbatches, step)
        self._memory = watch.parts
        self._counter = SentBytes()
        return result

    def _step_timed(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        from distrib.proof.clocks import active_seconds

        wall, busy = time.perf_counter(), active_seconds()
        result = self.inner.train_step(microbatches, step)
        self._walls.append(time.perf_counter() - wall)
        self._busy.append(active_seconds() - busy)
        self._sent.append(self._counter.since_last() if self._counter else None)
        return result

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.inner.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inner.reduce(sums)

    def tally(
        self, sums: Mapping[str, Tensor], *, per_step: Collection[str], votes: Collection[str]
    ) -> dict[str, Tensor]:
        return self.inner.tally(sums, per_step=per_step, votes=votes)

    def save(self, writer: StateWriter) -> None:
        self.inner.save(writer)

    def load(self, reader: StateReader) -> None:
        self.inner.load(reader)

    def run(self, body: Callable[[], T]) -> T | None:
        return self.inner.run(body)

    def close(self) -> None:
        if self._rank is not None:
            path = Path(self.folder) / f"measured-{self._rank}.json"
            path.write_text(json.dumps(self._numbers()), encoding="utf-8")
            self._rank = None
        self.inner.close()

    def _numbers(self) -> dict[str, Any]:
        return {"walls": self._walls, "busy": self._busy, "sent": self._sent, "memory": self._memory}
