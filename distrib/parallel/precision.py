"""Mixed precision: which autocast a precision means, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from distrib.core import PrecisionName
from distrib.errors import ConfigError


def autocast(precision: PrecisionName, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A maker of forward contexts. Raises `ConfigError` for fp16 where no accelerator is."""
    if precision in ("fp32", "fp64"):
        return nullcontext
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision", precision, "fp16 needs a GPU; use precision=bf16 or fp32 on a CPU")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return partial(torch.autocast, device_type=device.type, dtype=dtype)


class LossScale:
    """The dynamic loss scale of mixed precision training (Micikevicius et al. 2018, section 3.2).

    fp16 gradients below 6e-8 vanish, so the loss is multiplied by a power of two: halved when
    the gradient overflows, doubled after ``growth_interval`` steps that did not (the defaults are
    those of `torch.amp.GradScaler`). It reads the one verdict the step has anyway (is the norm
    finite?), hence no second pass over the gradients. A scale that is not ``dynamic`` stays 1.
    """

    def __init__(self, *, dynamic: bool, start: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.dynamic = dynamic
        self.value = start if dynamic else 1.0
        self.growth_interval = growth_interval
        self.good_steps = 0

    def update(self, *, finite: bool) -> None:
        """Takes the verdict of one step."""
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good_steps = max(self.value / 2, 1.0), 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0
