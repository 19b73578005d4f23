"""Whether DeepSpeed works here: for `distrib doctor`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.world import World


def all_reduce(world: World, value: Tensor) -> str:
    """Adds up ``value`` over all ranks in place; returns the name of the accelerator it found.

    Raises `MissingDependencyError` where it is not installed.
    """
    from distrib.strategies.deepspeed.session import connect, prepare

    with ExitStack() as taken:
        prepare(world, taken=taken)
        connect(world, taken=taken)
        import deepspeed.comm
        from deepspeed.accelerator import get_accelerator

        moved = value.to(world.device)
        deepspeed.comm.all_reduce(moved)
        value.copy_(moved)
        return str(get_accelerator()._name)
