"""Whether Horovod works here: for `distrib doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.world import World


def all_reduce(world: World, value: Tensor) -> str:
    """Adds up ``value`` over all ranks in place; returns what Horovod was built with.

    Raises `DistribError` where it is not installed for this torch, or does not start.
    """
    from distrib.strategies.horovod import collectives, engine

    engine.check(world, adasum=False)
    engine.start(world, options={})
    try:
        value.copy_(collectives.add_up(value))
        return engine.built_with()
    finally:
        engine.stop()
