"""The seam between training and parallelism: one optimizer step.

The contract, held by one parametrized test module for every strategy:

- ``__init__`` is pure: it keeps its arguments. `Strategy.setup` raises `ConfigError` or
  `MissingDependencyError` before the first collective.
- `Strategy.train_step` is exactly one update, clipped by the norm of the global gradient, and
  leaves no gradient behind; or none, on all ranks alike, where a lost rank has made it impossible
  (`StepResult.redo`). It does not wait for the device between microbatches.
- Ranks that share a data shard are given identical batches; `Strategy.reduce` counts each
  shard once.
- ``train_step``, ``reduce``, ``save`` and ``load`` may be collective, so every rank calls them.
- Every rank is given at least one microbatch; where a shard has none left, it is a ghost.

A strategy's own file imports torch and its engine inside methods: the process that composes
the configuration reads the constructor and must not pay for either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from distrib.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.core import Batch, DataShard, Job, StepResult
    from distrib.state import StateReader, StateWriter
    from distrib.world import World

T = TypeVar("T")


class Strategy(ABC):
    """Performs optimizer steps: decides where microbatches run and how their gradients meet."""

    def check(self, *, num_processes: int) -> None:  # noqa: B027
        """Raises `ConfigError` where it cannot run on that many processes; any number is right for most.

        Asked before a process starts, so it looks at the constructor's arguments alone.
        """

    def changes(self) -> str | None:
        """What it does differently from one process on purpose, in a few words; None: nothing.

        Asked before a process starts, like `check`.
        """
        return None

    def may_lose(self, rank: int, *, num_processes: int) -> bool:
        """Whether the job goes on when the process of ``rank`` dies; for most it does not.

        Asked before a process starts, like `check`.
        """
        return False

    def serves(self, rank: int, *, num_processes: int) -> bool:
        """Whether ``rank`` trains nothing and only serves the others, as the last ranks of some strategies.

        Asked before a process starts, like `check`.
        """
        return False

    @abstractmethod
    def setup(self, job: Job, world: World) -> None:
        """Builds, shards and wraps the model and its optimizer on ``world.device``."""

    @property
    @abstractmethod
    def shard(self) -> DataShard:
        """Which microbatches of every global batch this rank runs. Valid after `setup`."""

    @abstractmethod
    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """One update from this rank's microbatches of global batch ``step``."""

    @abstractmethod
    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The task's sums over one batch, with dropout off and without gradients."""

    @abstractmethod
    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds up sums over all data shards: same names and shapes everywhere, float64 on the CPU."""

    def tally(
        self, sums: Mapping[str, Tensor], *, per_step: Collection[str], votes: Collection[str]
    ) -> dict[str, Tensor]:
        """Adds up what was measured in the steps since the last time; for most, `reduce`.

        Where ranks run at their own pace this need not wait for them: a number is then an estimate from
        those that have come, and the ranks do not have to ask equally often. A vote above 0 comes back on
        every rank after the same step, whose `StepResult.meet` is true.

        Args:
            per_step: names of vectors with an entry for each of this rank's steps.
            votes: names of numbers by which a rank asks for something of all.
        """
        return self.reduce(sums)

    @abstractmethod
    def save(self, writer: StateWriter) -> None:
        """Hands weights and optimizer state to ``writer``: plain names, full tensors, one at a time."""

    @abstractmethod
    def load(self, reader: StateReader) -> None:
        """Takes weights and optimizer state from ``reader``, reading only what this rank holds."""

    def weights(self) -> Mapping[str, Tensor]:
        """What this rank holds of every trained parameter, by plain name: the tensors themselves.

        For a strategy made around this one, which may overwrite them between two steps. Raises
        `ConfigError` where an engine keeps them to itself.
        """
        remedy = "keeps its weights to itself; use Single, DDP or FSDP"
        raise ConfigError("strategy.inner", type(self).__name__, remedy)

    def live_step(self) -> int | None:
        """Steps done by the job that this rank has joined, whose state it holds already; None: no such job.

        Asked where training begins, on every rank alike. Where there is a number, no checkpoint is loaded.
        """
        return None

    def current_world(self, world: World) -> World:
        """Where this rank is now, which began as ``world``: an elastic engine's ranks change.

        Asked where training begins, like `live_step`.
        """
        return world

    def measures(self) -> Mapping[str, float]:
        """What this rank has measured of the strategy's own working since it was last asked, by name.

        Rank 0's are logged with the run's numbers as ``strategy/<name>``, in the order given. The same
        names every time. ``<whole>/<part>`` names an amount since the last time, which is added up over
        the run and drawn as a bar beside the whole's other parts: how many gradients were how stale.
        """
        return {}

    def run(self, body: Callable[[], T]) -> T | None:
        """Runs the training loop; a server serves here instead, an elastic engine retries."""
        return body()

    @abstractmethod
    def close(self) -> None:
        """Frees what `setup` took. May be called twice, and after a failed `setup`."""
