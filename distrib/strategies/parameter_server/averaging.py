"""A worker that trains by itself and exchanges parameters now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distrib.core import Batch, StepResult
from distrib.parallel.state import entry, load_replica, named_weights, optimizer_slots
from distrib.state import Entry, StateReader, StateWriter
from distrib.strategies.parameter_server.session import Op
from distrib.strategies.parameter_server.worker import Worker, targets_of


class Averaging(Worker):
    """Steps of the replica's own optimizer, and an exchange every ``stride`` of them.

    Weights that were evaluated or saved in between are the workers' mean (or the servers' centre); this
    worker's own are kept aside meanwhile.
    """

    def __init__(self, *given: Any, stride: int, elastic: float | None, **options: Any) -> None:
        super().__init__(*given, **options, own_norm=False)
        self.stride, self.elastic = stride, elastic
        self._is_last = False  # nothing leaves during backward
        self._targets = 0
        self._agreed = True
        self._own: list[Tensor] | None = None

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """One step of this worker's own, and perhaps an exchange."""
        self._meetings = 0
        self._take_back()
        self.settle()
        result = self._local_step(microbatches, step)
        self._agreed = self.elastic is None and (step + 1) % self.stride == 0
        if (step + 1) % self.stride == 0:
            stops = (
                self._exchange(step) if self.elastic is None else self._approach_centre(step, self.elastic)
            )
            result = replace(result, meet=stops)
        self.done = step + 1
        self.spent.steps += 1
        return result

    def _local_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """From the mean gradient over this worker's own targets; nothing where it has none."""
        targets = targets_of(microbatches)
        zero = torch.zeros((), dtype=torch.float64)
        if not targets:
            return StepResult(loss=zero, grad_norm=zero, updated=True)
        self._targets += targets
        factor = microbatches[0].step_targets / targets
        result = self.replica.train_step(microbatches, step, factor=factor)
        # An estimate of this worker's share of the whole batch's loss, from what it has seen of it.
        return replace(result, loss=result.loss.double() * factor / self.num_workers)

    def _exchange(self, step: int) -> bool:
        """Sends what the weights' vectors hold, and hears of it; whether all workers stop here."""
        self._up.begin(Op.STEP, step=step, bases=self.versions)
        for number in range(len(self.layout.buckets)):
            self._send_whole(number, self._weights)
        push = self._up.finish(0.0, self._targets, 1.0, 0.0, touched=self._touched)
        self._targets = 0
        return self._hear_result(push).meet

    def _approach_centre(self, step: int, share: float) -> bool:
        """Moves towards the centre, and has it move as far; whether all workers stop here.

        The way is this worker's to compute: a server that took over can be told it again, and adds it once.
        """
        own = self._copies()
        self.fetch()
        for vector, mine in zip(self._weights.vectors, own, strict=True):
            torch.sub(mine, vector, out=vector).mul_(share)
        stops = self._exchange(step)
        for vector, mine in zip(self._weights.vectors, own, strict=True):
            torch.sub(mine, vector, out=vector)
        return stops

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        self._agree()
        return super().eval_step(batch)

    def _agree(self) -> None:
        """Puts the workers' mean, or the centre, in place of this worker's weights until it trains again."""
        self.settle()
        if self._agreed or self._own is not None:
            return
        self._own = self._copies()
        if self.elastic is not None:
            self.fetch()
            return
        for vector in self._weights.vectors:
            vector.copy_(self._mean(vector, weight=float(self._targets)))

    def _take_back(self) -> None:
        for vector, own in zip(self._weights.vectors, self._own or [], strict=self._own is not None):
            vector.copy_(own)
        self._own = None

    def _copies(self) -> list[Tensor]:
        return [vector.clone() for vector in self._weights.vectors]

    def _mean(self, tensor: Tensor, *, weight: float = 1.0) -> Tensor:
        sums = self.meet(
            {"sum": tensor.double() * weight, "weight": torch.tensor(weight, dtype=torch.float64)}
        )
        return (sums["sum"] / sums["weight"]).to(tensor.device, tensor.dtype)

    def save(self, writer: StateWriter, *, leads: bool) -> None:
        """The mean of the weights (or the centre) and of the optimizers' state; every worker takes part."""
        self.meet({"before saving": torch.ones(())})
        self._agree()
        module = self.replica.module
        slots = [
            Entry(name=name, shape=value.shape, dtype=value.dtype, read=partial(self._mean, value))
            for name, value in optimizer_slots(module, self.replica.optimizer)
        ]
        if leads:
            writer.write_alone("model", [entry(name, value) for name, value in named_weights(module).items()])
            writer.write_alone("optimizer", slots)
        else:
            for slot in slots:
                slot.read()

    def load(self, reader: StateReader, *, leads: bool) -> None:
        """Every worker takes the weights and the optimizer's state; the servers the weights."""
        self._own, self._targets, self._agreed = None, 0, True
        load_replica(reader, self.replica.module, self.replica.optimizer)
        if leads:
            self.place()
        self.meet({"loaded": torch.ones(())})
