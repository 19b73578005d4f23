"""The end of an optimizer step on a rank that holds the whole gradient: clip, update, clear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

CLIP_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`, so that a hand-written loop clips alike."""


def clip_and_update(
    optimizer: Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    max_grad_norm: float | None,
    loss_scale: float = 1.0,
) -> tuple[Tensor, bool]:
    """One update from the gradients in ``parameters``, which are cleared.

    Returns the gradient's norm before clipping and whether the update was made: it is left out
    when the norm is not finite. Waits for the device once, to learn that.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) / loss_scale
    value = norm.item()
    updated = math.isfinite(value)
    if updated:
        clip = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / (value + CLIP_EPSILON))
        if clip / loss_scale != 1.0:
            torch._foreach_mul_(gradients, clip / loss_scale)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, updated
