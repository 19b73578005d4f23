"""The end of an optimizer step: clip by the global norm, update, clear."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

CLIP_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`, so that a hand-written loop clips alike."""


def clip_and_update(
    optimizer: Optimizer,
    gradients: list[Tensor],
    *,
    norm: Tensor,
    lr: float,
    max_grad_norm: float | None,
    loss_scale: float = 1.0,
) -> tuple[Tensor, bool]:
    """One update from the gradients of the optimizer's parameters, which are cleared.

    ``gradients`` is what this rank holds of them, ``norm`` the norm of the whole gradient; both
    still carry ``loss_scale``. Returns the true norm before clipping and whether the update was
    made: it is left out when the norm is not finite. Waits for the device once, to learn that.
    """
    norm = norm / loss_scale
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
