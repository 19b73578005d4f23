"""Where two runs part: trained again with a checkpoint after every step, and compared step by step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.checkpoint import step_folder
from distrib.config import RunConfig
from distrib.errors import DistribError
from distrib.proof.bounds import GROWTH, Bounds
from distrib.proof.trajectory import Differences, tensor_differences

SECTIONS = ("optimizer", "model")
"""The optimizer first: after one step its averages are the gradient, which AdamW hides from the weights."""

RunJob = Callable[[RunConfig, Path], None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The first step and parameter that differ."""

    step: int
    name: str
    """The parameter that differs most, with its optimizer slot where it is that that differs."""
    share: float
    """By how much, as a share of the largest value of its kind."""
    count: int
    """How many parameters differ after that step."""
    total: int

    def __str__(self) -> str:
        return (
            f"first differs after step {self.step}: {self.count} of {self.total} tensors, "
            f"most of all {self.name} (by {self.share:.2g} of the largest value of its kind)"
        )


def first_broken(found: Differences, bounds: Bounds) -> int:
    """The first step, from 1, whose loss or gradient norm breaks its bound; the last where none does."""
    for step, (loss, norm) in enumerate(zip(found.losses, found.grad_norms, strict=True), start=1):
        if not (loss <= bounds.loss and norm <= bounds.grad_norm):
            return step
    return len(found.losses)


def find_place(
    ours: RunConfig, theirs: RunConfig, nudged: RunConfig, *, last_step: int, folder: Path, run_job: RunJob
) -> Place | str:
    """Trains all three as far as ``last_step`` again, or says why nothing was found. Leaves no checkpoint."""
    try:
        roots = []
        for number, config in enumerate((ours, theirs, nudged)):
            run_job(with_every_step(config, last_step=last_step), folder / str(number))
            roots.append(folder / str(number) / "checkpoints")
        for step in range(1, last_step + 1):
            a, b, c = (step_folder(root, step) for root in roots)
            place = compare_step(shares(a, b), rounding=shares(c, b), step=step)
            if place is not None:
                return place
    except DistribError as error:
        return f"the second run, with a checkpoint after every step, failed: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"no tensor stands out in the {last_step} steps before; small differences added up"


def with_every_step(config: RunConfig, *, last_step: int) -> RunConfig:
    """The same run, stopped after ``last_step``, all its checkpoints kept."""
    stop = last_step if last_step < (config.train.steps or 0) else None
    return replace(
        config,
        train=replace(config.train, stop_after=stop),
        checkpoint=replace(config.checkpoint, save_every=1, keep_last=last_step),
    )


Shares = Mapping[str, float]
"""How far each tensor is off, in units of the largest value of its kind in the model."""


def compare_step(found: Shares, *, rounding: Shares, step: int) -> Place | None:
    """The tensor that is most off, where one is by more than rounding does to any of its kind."""
    floor: dict[str, float] = {}
    for name, share in rounding.items():
        floor[_kind(name)] = max(floor.get(_kind(name), 0.0), GROWTH * share)
    far = {name: share for name, share in found.items() if not share <= floor.get(_kind(name), 0.0)}
    if not far:
        return None
    name = max(far, key=far.__getitem__)
    return Place(step=step, name=name, share=far[name], count=len(far), total=len(found))


def shares(ours: Path, theirs: Path) -> dict[str, float]:
    """Of every tensor of two checkpoints: an average of gradients that are zero but for rounding would
    differ by all of itself, but hardly in units of the largest average in the model."""
    found: dict[str, float] = {}
    for section in SECTIONS:
        tensors = list(tensor_differences(ours, theirs, section=section))
        sizes: dict[str, float] = {}
        for tensor in tensors:
            sizes[_kind(tensor.name)] = max(sizes.get(_kind(tensor.name), 0.0), tensor.size)
        for tensor in tensors:
            found[tensor.name] = tensor.largest / (sizes[_kind(tensor.name)] or 1.0)
    return found


def _kind(name: str) -> str:
    """A slot of the optimizer, or nothing: weights are of one kind."""
    return name.partition("/")[2]
