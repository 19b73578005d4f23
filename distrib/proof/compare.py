"""Strategies side by side on the same model and data: what each takes of time, memory and network."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.config import RunConfig
from distrib.errors import DistribError
from distrib.proof.jobs import Cell, run_job
from distrib.proof.memory_parts import PARTS
from distrib.proof.trajectory import Trajectory
from distrib.tracking.files import SUMMARY, read_json

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer

MEASURED = "distrib.proof.measured.Measured"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run of one strategy."""

    seconds: Sequence[float]
    """By timed step: the slowest rank's wall time."""
    waiting: float
    """Share of the steps' wall time in which the training threads had nothing to do, mean over ranks."""
    sent: float | None
    """Bytes sent per step by a rank, mean over ranks; None where it cannot be counted."""
    memory: Mapping[str, int]
    """Bytes of live tensors by part: the rank with the most; empty where it could not be seen."""
    peak: int
    """Largest resident (or device) memory of any rank, in bytes."""
    loss: float
    """Of the last step."""
    loss_curve: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One strategy in the table."""

    cell: Cell
    samples: Sequence[Sample]
    failure: str = ""
    """Why it did not run, or not every time."""

    @property
    def seconds(self) -> list[float]:
        """All timed steps of all repeats."""
        return [second for sample in self.samples for second in sample.seconds]

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Between which times the middle half of the steps lies."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def examples_per_second(self) -> float:
        """Of a full global batch at the median."""
        assert isinstance(self.cell.config, RunConfig)
        return self.cell.config.train.global_batch_size / self.median

    @property
    def peak(self) -> int:
        return max(sample.peak for sample in self.samples)

    @property
    def memory(self) -> Mapping[str, int]:
        return max((sample.memory for sample in self.samples), key=lambda parts: sum(parts.values()))

    @property
    def tensors(self) -> int:
        """All parts of memory together; 0 where they could not be seen."""
        return sum(self.memory.values())

    @property
    def sent(self) -> float | None:
        counted = [sample.sent for sample in self.samples if sample.sent is not None]
        return statistics.median(counted) if counted else None

    @property
    def waiting(self) -> float:
        return statistics.median(sample.waiting for sample in self.samples)

    @property
    def loss(self) -> float:
        return self.samples[0].loss


@dataclass(kw_only=True)
class Comparison:
    """Runs every cell ``repeats`` times, in turns, so that a busy minute falls on all alike."""

    cells: Sequence[Cell]
    repeats: int
    root: Path
    server: ForkServer | None
    say: Callable[[str], None]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[Entry]:
        """The strategies that ran, the fastest first, then those that did not."""
        for repeat in range(1, self.repeats + 1):
            for cell in self.cells:
                self._run_one(cell, repeat)
        entries = [
            Entry(
                cell=cell,
                samples=self.samples.get(cell.name, []),
                failure=self.failures.get(cell.name, ""),
            )
            for cell in self.cells
        ]
        return sorted(entries, key=lambda entry: entry.median if entry.samples else float("inf"))

    def _run_one(self, cell: Cell, repeat: int) -> None:
        """A strategy that failed once is not tried again."""
        if cell.name in self.failures:
            return
        if isinstance(cell.config, DistribError):
            self.failures[cell.name] = str(cell.config)
            return
        run_dir = self.root / f"{cell.name}-{repeat}"
        try:
            run_job(measured(cell.config, run_dir), run_dir, server=self.server)
            sample = read_sample(run_dir)
        except DistribError as error:
            self.failures[cell.name] = str(error)
            self.say(f"round {repeat}: {cell.strategy} on {cell.world_size}: failed")
            return
        finally:
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        self.samples.setdefault(cell.name, []).append(sample)
        milliseconds = 1e3 * statistics.median(sample.seconds)
        self.say(f"round {repeat}: {cell.strategy} on {cell.world_size}: {milliseconds:.1f} ms a step")


def measured(config: RunConfig, run_dir: Path) -> RunConfig:
    """The same run with a stopwatch around its strategy."""
    target = {"_target_": MEASURED, "inner": config.strategy, "folder": str(run_dir)}
    return replace(config, strategy=target)


def read_sample(run_dir: Path) -> Sample:
    """What a finished run left, its ranks put together. Raises `DataError`."""
    ranks = [json.loads(path.read_text()) for path in sorted(run_dir.glob("measured-*.json"))]
    ranks = [rank for rank in ranks if rank["walls"]]  # a rank that only serves takes no steps
    losses = Trajectory.read(run_dir).losses
    sent = [count for rank in ranks for count in rank["sent"]]
    return Sample(
        seconds=[max(walls) for walls in zip(*(rank["walls"] for rank in ranks), strict=True)],
        waiting=statistics.mean(max(0.0, 1 - sum(rank["busy"]) / sum(rank["walls"])) for rank in ranks),
        sent=None if None in sent else statistics.mean(sent),
        memory=max((rank["memory"] for rank in ranks), key=lambda parts: sum(parts.values())),
        peak=int(read_json(run_dir / SUMMARY)["peak_memory"]),
        loss=losses[-1],
        loss_curve=losses,
    )


def advice(entries: Sequence[Entry]) -> str:
    """Which one to use here, in a sentence or two."""
    ran = [entry for entry in entries if entry.samples]
    if not ran:
        return "none of them ran"
    fastest = ran[0]
    said = f"fastest here: {fastest.cell.strategy} ({1e3 * fastest.median:.1f} ms a step)"
    seen = [entry for entry in ran if entry.memory]
    smallest = min(seen, key=lambda entry: entry.tensors, default=fastest)
    if smallest is fastest or not fastest.tensors:
        return said + (", and none takes less memory" if seen else "")
    saved, slower = 1 - smallest.tensors / fastest.tensors, smallest.median / fastest.median
    return (
        f"{said}; least memory: {smallest.cell.strategy} "
        f"({saved:.0%} less in tensors per rank, {slower:.2g} x the time)"
    )


def as_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """What ``compare.json`` holds."""
    return {
        "advice": advice(entries),
        "memory_parts": list(PARTS),
        "strategies": [
            {
                "strategy": entry.cell.strategy,
                "num_processes": entry.cell.world_size,
                "failure": entry.failure,
                "samples": [asdict(sample) for sample in entry.samples],
            }
            for entry in entries
        ],
    }
