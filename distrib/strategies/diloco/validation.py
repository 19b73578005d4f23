"""What DiLoCo's settings must be, before a process starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.strategies.base import Strategy

if TYPE_CHECKING:
    from distrib.strategies.diloco.strategy import DiLoCo


def check(given: DiLoCo, *, num_processes: int) -> None:
    """Raises `ConfigError` for the first setting that cannot be."""
    inner: object = given.inner
    if not isinstance(inner, Strategy):
        remedy = "a target is expected: strategy.inner._target_=distrib.strategies.ddp.DDP"
        raise ConfigError("strategy.inner", inner, remedy)
    divides = given.replica_size >= 1 and num_processes % given.replica_size == 0
    rules = {
        "sync_every": (given.sync_every >= 1, "must be 1 or more"),
        "replica_size": (divides, f"must divide the number of processes, which is {num_processes}"),
        "outer_lr": (given.outer_lr > 0, "must be above 0"),
        "outer_momentum": (0 <= given.outer_momentum < 1, "must be from 0 to less than 1"),
        "num_fragments": (
            1 <= given.num_fragments <= given.sync_every,
            f"must be from 1 to strategy.sync_every, which is {given.sync_every}",
        ),
        "overlap": (
            0 <= given.overlap < given.sync_every,
            f"must be from 0 to less than strategy.sync_every, which is {given.sync_every}",
        ),
        "keep_local": (0 <= given.keep_local < 1, "must be from 0 to less than 1"),
    }
    for name, (holds, remedy) in rules.items():
        if not holds:
            raise ConfigError(f"strategy.{name}", getattr(given, name), remedy)
