"""The one-process run from weights that are off by one rounding: what rounding alone does to a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from distrib.core import Job
from distrib.strategies.single import Single
from distrib.world import World

if TYPE_CHECKING:
    from torch import nn


class Nudged(Single):
    """Multiplies each initial weight by 1 + eps or 1 - eps: it moves by one unit in the last place.

    Another order of summation is off by about as much, so what becomes of this difference is what a
    correct strategy may differ by (the perturbation method of Vignes 1993, "A stochastic arithmetic
    for reliable scientific computation").
    """

    def setup(self, job: Job, world: World) -> None:
        super().setup(replace(job, build_model=lambda: nudge(job.build_model())), world)


def nudge(model: nn.Module) -> nn.Module:
    """Moves every parameter by one rounding, up or down by a fixed draw."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator, dtype=parameter.dtype) * 2 - 1
            parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps)
    return model
