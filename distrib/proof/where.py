"""Where two runs part: trained again with a checkpoint after every step, and compared step by step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.checkpoint import step_folder
from distrib.config import RunConfig
from distrib.core import PrecisionName
from distrib.errors import DistribError
from distrib.proof.bounds import Bounds
from distrib.proof.trajectory import Differences, TensorDifference, tensor_differences

SECTIONS = ("optimizer", "model")
"""The optimizer first: after one step its averages are the gradient, which AdamW hides from the weights."""

VISIBLE: dict[PrecisionName, float] = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}
"""What counts as a difference of one tensor, as a share of the largest value of its kind in the model:
an average of gradients that are zero but for rounding would differ by all of itself."""

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
    ours: RunConfig, theirs: RunConfig, *, last_step: int, folder: Path, run_job: RunJob
) -> Place | str:
    """Trains both as far as ``last_step`` again, or says why nothing was found. Leaves no checkpoint."""
    runs = [folder / "ours", folder / "theirs"]
    try:
        for config, run_dir in zip((ours, theirs), runs, strict=True):
            run_job(with_every_step(config, last_step=last_step), run_dir)
        roots = [run_dir / "checkpoints" for run_dir in runs]
        for step in range(1, last_step + 1):
            place = compare_step(*roots, step=step, visible=VISIBLE[ours.precision.name])
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


def compare_step(ours: Path, theirs: Path, *, step: int, visible: float) -> Place | None:
    """The tensor that differs most after a step, where one does."""
    a, b = step_folder(ours, step), step_folder(theirs, step)
    tensors = [list(tensor_differences(a, b, section=section)) for section in SECTIONS]
    shares = [found for section in tensors for found in _shares(section)]
    far = [(share, name) for share, name in shares if not share <= visible]
    if not far:
        return None
    share, name = max(far)
    return Place(step=step, name=name, share=share, count=len(far), total=len(shares))


def _shares(tensors: list[TensorDifference]) -> Iterator[tuple[float, str]]:
    """Differences in units of the largest value of the same slot; weights are one kind together."""
    sizes: dict[str, float] = {}
    for found in tensors:
        kind = found.name.partition("/")[2]
        sizes[kind] = max(sizes.get(kind, 0.0), found.size)
    for found in tensors:
        size = sizes[found.name.partition("/")[2]]
        yield (found.largest / size if size else found.largest), found.name
