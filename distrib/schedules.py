"""The learning rate as a pure function of the step: ``optimizer.lr * schedule.factor(step, num_steps)``.

Nothing is kept between steps, so there is nothing to save, and a run that is resumed at step ``t`` has
the rate it would have had. Steps count from 0. Warmup is linear and its first step is already above
zero: ``(step + 1) / warmup``, as an update with rate 0 is a step thrown away.

``warmup`` and ``decay`` are steps where they are whole numbers of 1 or more, and a share of all steps
below 1: ``warmup: 100`` or ``warmup: 0.1``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from distrib.errors import ConfigError


class Schedule(ABC):
    """The shape of the learning rate over a run, between 0 and 1."""

    def __init__(self, *, warmup: int | float = 0) -> None:
        _check_span("warmup", warmup)
        self.warmup = warmup

    def factor(self, step: int, num_steps: int) -> float:
        """What the peak rate is multiplied by at ``step``. Raises `ConfigError` for parts that do not fit."""
        warmup = _span("warmup", self.warmup, num_steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.after_warmup(step - warmup, num_steps - warmup)

    @abstractmethod
    def after_warmup(self, step: int, num_steps: int) -> float:
        """The factor of ``step`` of the ``num_steps`` that follow the warmup, both without it."""


class Constant(Schedule):
    """Stays at the peak."""

    def after_warmup(self, step: int, num_steps: int) -> float:
        return 1.0


class Linear(Schedule):
    """Falls in a straight line; would reach ``final`` one step after the last."""

    def __init__(self, *, warmup: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        self.final = _check_final(final)

    def after_warmup(self, step: int, num_steps: int) -> float:
        return 1 - (1 - self.final) * step / num_steps


class Cosine(Schedule):
    """Falls along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""

    def __init__(self, *, warmup: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        self.final = _check_final(final)

    def after_warmup(self, step: int, num_steps: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / num_steps)) / 2


class WarmupStableDecay(Schedule):
    """Stays at the peak, then falls in a straight line over the last ``decay``.

    Source: Hu et al. 2024, arXiv:2404.06395.
    """

    def __init__(self, *, warmup: int | float = 0, decay: int | float = 0.1, final: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        _check_span("decay", decay)
        self.decay = decay
        self.final = _check_final(final)

    def factor(self, step: int, num_steps: int) -> float:
        decay = _span("decay", self.decay, num_steps)
        if decay + _span("warmup", self.warmup, num_steps) > num_steps:
            remedy = f"warmup and decay together exceed the run of {num_steps} steps"
            raise ConfigError("schedule.decay", self.decay, remedy)
        into_decay = step - (num_steps - decay)
        if into_decay < 0:
            return super().factor(step, num_steps)
        return 1 - (1 - self.final) * into_decay / decay

    def after_warmup(self, step: int, num_steps: int) -> float:
        return 1.0


def _check_span(name: str, value: int | float) -> None:
    if value < 0 or (value >= 1 and value != int(value)):
        raise ConfigError(f"schedule.{name}", value, "give whole steps (100) or a share below 1 (0.1)")


def _check_final(value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError("schedule.final", value, "a share of the peak learning rate, between 0 and 1")
    return value


def _span(name: str, value: int | float, num_steps: int) -> int:
    steps = int(value) if value >= 1 else round(value * num_steps)
    if steps > num_steps:
        raise ConfigError(f"schedule.{name}", value, f"is longer than the whole run of {num_steps} steps")
    return steps
