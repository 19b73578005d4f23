"""A strategy without arithmetic, for tests of everything around a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distrib.core import Batch, DataShard, Job, StepResult
from distrib.strategies.base import Strategy
from distrib.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.state import StateReader, StateWriter


class Fake(Strategy):
    """Writes down what it is asked to do; its model is one number that counts the steps taken.

    Args:
        fail_at: the step at which `train_step` raises RuntimeError.
        skip_at: steps that report a gradient which is not finite.
        redo_at: steps that ask, once, to be run again.
        loss: what every step reports as the summed loss.
    """

    def __init__(
        self,
        *,
        fail_at: int | None = None,
        skip_at: Sequence[int] = (),
        redo_at: Sequence[int] = (),
        loss: float = 1.0,
    ) -> None:
        self.fail_at = fail_at
        self.skip_at = tuple(skip_at)
        self.redo_at = list(redo_at)
        self.loss = loss
        self.calls: list[str] = []
        self.steps_taken = 0

    def setup(self, job: Job, world: World) -> None:
        self.calls.append("setup")
        self.job = job

    @property
    def shard(self) -> DataShard:
        return DataShard(index=0, count=1)

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        import torch

        self.calls.append(f"train_step {step}")
        if step == self.fail_at:
            raise RuntimeError(f"asked to fail at step {step}")
        if step in self.redo_at:
            self.redo_at.remove(step)
            nothing = torch.tensor(float("nan"))
            return StepResult(loss=nothing, grad_norm=nothing, updated=False, redo=True)
        self.steps_taken += 1
        skipped = step in self.skip_at
        norm = torch.tensor(float("nan") if skipped else 1.0)
        return StepResult(loss=torch.tensor(self.loss), grad_norm=norm, updated=not skipped)

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        import torch

        self.calls.append("eval_step")
        return {"targets": (batch.tensors["labels"] >= 0).sum(dtype=torch.float64)}

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().double().cpu() for name, value in sums.items()}

    def save(self, writer: StateWriter) -> None:
        import torch

        from distrib.parallel.state import entry

        self.calls.append("save")
        writer.write("model", [entry("steps_taken", torch.tensor([self.steps_taken]))])

    def load(self, reader: StateReader) -> None:
        self.calls.append("load")
        self.steps_taken = int(reader.read("model", "steps_taken").item())

    def close(self) -> None:
        self.calls.append("close")
