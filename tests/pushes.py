"""What a worker of the parameter server pushes, for tests that look at nothing but who pushed what when."""

from __future__ import annotations

import torch

from distrib.strategies.parameter_server.rules import Push


def push(rank: int, step: int, *, life: int = 0, redone: int = 0) -> Push:
    """One of a single element, from weights of version 0."""
    return Push(
        rank=rank,
        step=step,
        base=0,
        vector=torch.zeros(1),
        loss=0.0,
        targets=1.0,
        step_targets=1.0,
        norm=0.0,
        seconds=0.1,
        touched=frozenset(),
        life=life,
        redone=redone,
    )
