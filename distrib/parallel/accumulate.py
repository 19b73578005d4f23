"""Gradient accumulation that is exact per target: sums of sums, divided once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from distrib.core import Batch, Job
from distrib.parallel.randomness import seed_microbatch

Context = Callable[[], AbstractContextManager[object]]


def accumulate(
    module: nn.Module,
    microbatches: Sequence[Batch],
    *,
    job: Job,
    step: int,
    device: torch.device,
    forward_context: Context = nullcontext,
    hold_sync: Context = nullcontext,
    factor: float = 1.0,
) -> Tensor:
    """Adds ``factor`` times the gradient of the mean loss over the global batch to ``.grad``.

    ``hold_sync`` wraps every microbatch but the last, whose backward is the one that may talk
    to other ranks. Returns the summed loss of these microbatches, detached.
    """
    losses = []
    last = len(microbatches) - 1
    for position, batch in enumerate(microbatches):
        with nullcontext() if position == last else hold_sync():
            seed_microbatch(job.seed, step=step, index=batch.index, device=device)
            with forward_context():
                loss = job.loss(module, batch.tensors)
            detached = loss.detach()
            # 0 x NaN is NaN: a loss that is not finite spoils every gradient of this rank, so
            # the global norm tells all ranks alike without a message of its own.
            torch.autograd.backward(loss, detached * 0.0 + factor / batch.step_targets)
            losses.append(detached)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
