"""What a step leaves behind, kept on each rank until the ranks add their numbers up."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distrib.core import DataShard, StepResult

PER_STEP, VOTES = ("loss", "seconds"), ("stop",)
"""What `Meter.sums` holds an entry of for every step, and what is a vote."""

SYNC_SECONDS = 1.0
"""How old a logged number, and how late the answer to a signal, may be when steps are short."""


def peak_memory(device: str) -> int:
    """Largest memory of this process so far, in bytes: of the GPU where there is one, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@dataclass(frozen=True, kw_only=True, slots=True)
class StepNumbers:
    """One step as this rank saw it."""

    result: StepResult
    examples: int
    tokens: int
    targets: int
    lr: float
    seconds: float


class Meter:
    """Collects steps; `flush` adds them up over the shards in one message."""

    def __init__(self, *, shard: DataShard, device: str) -> None:
        self._shard = shard
        self._device = device
        self._steps: list[StepNumbers] = []
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """The next step's time counts from now; called after anything that is not training."""
        self._clock = time.perf_counter()

    def add(self, result: StepResult, *, examples: int, tokens: int, targets: int, lr: float) -> None:
        """Keeps one step and its wall time."""
        now = time.perf_counter()
        self._steps.append(
            StepNumbers(
                result=result,
                examples=examples,
                tokens=tokens,
                targets=targets,
                lr=lr,
                seconds=now - self._clock,
            )
        )
        self._clock = now

    def sums(self, *, stop: bool) -> dict[str, Tensor]:
        """What the ranks add up: losses by step, this shard's memory in its own place, a vote to stop."""
        memory = torch.zeros(self._shard.count, dtype=torch.float64)
        memory[self._shard.index] = peak_memory(self._device)
        return {
            "loss": torch.stack([step.result.loss.double() for step in self._steps]),
            "seconds": torch.tensor([step.seconds for step in self._steps], dtype=torch.float64),
            "memory": memory,
            "stop": torch.tensor(float(stop), dtype=torch.float64),
        }

    def flush(self, total: Mapping[str, Tensor], *, last_step: int) -> list[dict[str, float]]:
        """One record per step since the last flush, from the added-up sums; forgets the steps."""
        losses, seconds = total["loss"].tolist(), total["seconds"].tolist()
        memory = total["memory"].max().item()
        records = []
        for number, step in enumerate(self._steps):
            records.append(
                {
                    "step": last_step - len(self._steps) + number + 1,
                    "loss": losses[number] / max(step.targets, 1),
                    "grad_norm": float(step.result.grad_norm),
                    "lr": step.lr,
                    "examples": step.examples,
                    "tokens": step.tokens,
                    "seconds": seconds[number] / self._shard.count,
                    "memory": memory,
                }
            )
        self._steps = []
        return records


class Cadence:
    """When the ranks next add up: every ``log_every`` steps, or sooner so that about a second passes.

    Decided from reduced numbers only, so that all ranks decide alike.
    """

    def __init__(self, *, log_every: int) -> None:
        self._log_every = log_every
        self._next: int | None = None
        self._done, self._seconds = 0, 0.0

    def due(self, done: int) -> bool:
        """Whether the ranks add up after ``done`` steps; always after the first."""
        return self._next is None or done >= self._next

    def synced(self, done: int, *, step_seconds: float) -> None:
        """They have, and a step took ``step_seconds`` on average."""
        fitting = int(SYNC_SECONDS / max(step_seconds, 1e-9))
        self._next = done + max(1, min(self._log_every, fitting))
        self._seconds += step_seconds * (done - self._done)
        self._done = done

    def passed(self, seconds: float) -> bool:
        """Whether so much training lies between the last time that this was so and `synced`."""
        if self._seconds < seconds:
            return False
        self._seconds = 0.0
        return True
