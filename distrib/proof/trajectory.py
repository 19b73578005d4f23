"""What a finished run went through, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.checkpoint import find_checkpoint
from distrib.errors import CheckpointError
from distrib.tracking.files import EVALUATION, METRICS, read_json, read_metrics

if TYPE_CHECKING:
    from distrib.state import StateReader


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The numbers of one run by step, its evaluation and where its weights are."""

    losses: Sequence[float]
    grad_norms: Sequence[float]
    metrics: Mapping[str, float]
    checkpoint: Path

    @classmethod
    def read(cls, run_dir: Path) -> Trajectory:
        """From a finished run directory. Raises `DataError`, `CheckpointError`."""
        steps = [record for record in read_metrics(run_dir / METRICS) if "loss" in record]
        evaluation = read_json(run_dir / EVALUATION).get("metrics", {})
        return cls(
            losses=[_number(record["loss"]) for record in steps],
            grad_norms=[_number(record["grad_norm"]) for record in steps],
            metrics={name: _number(value) for name, value in evaluation.items()},
            checkpoint=find_checkpoint(run_dir),
        )


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How far a run is from its reference. A number that only one of the two has is infinitely far."""

    losses: Sequence[float]
    """By step, absolute."""
    grad_norms: Sequence[float]
    """By step; relative where the norm is above 1, since a clipped gradient has the norm 1."""
    weight: float
    """The largest of any weight after the last step, absolute."""
    parameter: str
    """Where that is."""
    evaluation: float
    """The largest of any metric; relative where the metric is above 1."""

    @property
    def largest(self) -> dict[str, float]:
        """By the name of the bound that judges it."""
        return {
            "loss": max(self.losses, default=math.inf),
            "grad_norm": max(self.grad_norms, default=math.inf),
            "weights": self.weight,
            "evaluation": self.evaluation,
        }


def differences(ours: Trajectory, theirs: Trajectory) -> Differences:
    """Ours from theirs, step by step and parameter by parameter; one tensor in memory at a time."""
    metrics = [
        (ours.metrics.get(name), theirs.metrics.get(name)) for name in {*ours.metrics, *theirs.metrics}
    ]
    weight, parameter = max(
        (found.largest, found.name) for found in tensor_differences(ours.checkpoint, theirs.checkpoint)
    )
    return Differences(
        losses=_by_step(ours.losses, theirs.losses, apart),
        grad_norms=_by_step(ours.grad_norms, theirs.grad_norms, relatively_apart),
        weight=weight,
        parameter=parameter,
        evaluation=max((relatively_apart(a, b) for a, b in metrics), default=0.0),
    )


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One tensor of two checkpoints."""

    name: str
    largest: float
    """Largest absolute difference of two values."""
    size: float
    """Largest absolute value in the reference."""


def tensor_differences(ours: Path, theirs: Path, *, section: str = "model") -> Iterable[TensorDifference]:
    """One entry per tensor of a section. Raises `CheckpointError` where the two do not hold the same ones."""
    from distrib.state import StateReader

    a, b = StateReader(ours), StateReader(theirs)
    if odd := sorted(a.names(section) ^ b.names(section)):
        raise CheckpointError(f"only one of {ours} and {theirs} holds '{odd[0]}' in {section}/")
    return [_tensor_difference(a, b, section, name) for name in sorted(a.names(section))]


def _tensor_difference(a: StateReader, b: StateReader, section: str, name: str) -> TensorDifference:
    x, y = a.read(section, name).double(), b.read(section, name).double()
    if x.shape != y.shape:
        shapes = f"{tuple(x.shape)} in {a.folder}, {tuple(y.shape)} in {b.folder}"
        raise CheckpointError(f"'{name}' has shape {shapes}")
    if x.numel() == 0:
        return TensorDifference(name=name, largest=0.0, size=0.0)
    return TensorDifference(name=name, largest=_finite((x - y).abs().max().item()), size=y.abs().max().item())


def difference_text(value: float) -> str:
    """As ``1.8e-07``; 0 where there is none at all."""
    return f"{value:.1e}" if value else "0"


def apart(a: float | None, b: float | None) -> float:
    """The absolute difference; infinite where one is missing or not finite."""
    return math.inf if a is None or b is None else _finite(abs(a - b))


def relatively_apart(a: float | None, b: float | None) -> float:
    """The difference in units of ``b`` where that is above 1."""
    return apart(a, b) / max(1.0, abs(b or 0.0))


def _by_step(
    ours: Sequence[float], theirs: Sequence[float], distance: Callable[[float | None, float | None], float]
) -> list[float]:
    return [distance(a, b) for a, b in zip_longest(ours, theirs)]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _number(value: float | None) -> float:
    """Null stands for what JSON cannot say."""
    return math.nan if value is None else float(value)
