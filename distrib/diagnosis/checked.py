"""Comparing what the ranks call before each collective operation runs, and stopping to.

torch's own wrapper does it (what ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` puts around every group): a barrier
and a few small all-gathers before each operation, here of the default group. It costs 1 to 2 ms an
operation (`benchmarks/checking.py`), so it is taken out again after the first steps.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from distrib.world import World

MISMATCH = "Detected mismatch between collectives"
"""How the wrapper's complaint begins."""


def start_checking(world: World, store: Store) -> None:
    """From here on the default group's operations on tensors of ``world.device`` are compared.

    Args:
        store: a name of its own, for the group by which the ranks compare.

    Does nothing where torch compares all groups' already.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import ProcessGroupGloo, _ProcessGroupWrapper

    device = torch.device(world.device).type
    group = dist.group.WORLD
    assert group is not None
    plain = group._get_backend(torch.device(device))
    if isinstance(plain, _ProcessGroupWrapper):
        return
    limit = timedelta(seconds=world.collective_timeout)
    helper = ProcessGroupGloo(store, world.rank, world.size, timeout=limit)
    # Under a type of its own: DistributedDataParallel takes the one of type GLOO for gloo's own class.
    checked = _ProcessGroupWrapper(plain, helper)
    group._register_backend(torch.device(device), dist.ProcessGroup.BackendType.CUSTOM, checked)


def is_checking(device: str) -> bool:
    """Whether the default group compares operations on tensors of ``device``."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import _ProcessGroupWrapper

    group = dist.group.WORLD
    return group is not None and isinstance(
        group._get_backend(torch.device(torch.device(device).type)), _ProcessGroupWrapper
    )


def stop_checking(device: str) -> None:
    """The default group's operations run unchecked from here on. Every rank calls it at the same place.

    Not where ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` asks for more than we do.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import DebugLevel, get_debug_level

    if not is_checking(device) or get_debug_level() == DebugLevel.DETAIL:
        return
    group = dist.group.WORLD
    assert group is not None
    kind = torch.device(torch.device(device).type)
    plain = group._get_backend(kind).wrapped_pg  # type: ignore[attr-defined]
    own = getattr(dist.ProcessGroup.BackendType, plain.name().upper())
    group._register_backend(kind, own, None)  # the first of a type has stayed
