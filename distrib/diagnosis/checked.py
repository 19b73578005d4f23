"""Comparing what the ranks call before each collective operation runs, and stopping to.

torch's own wrapper does it (what ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` turns on): a barrier and a few
small all-gathers before every operation of the default group. Measured with two processes on two
busy cores: 1.6 ms more for each operation, so it is taken out again after the first steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import device
    from torch._C._distributed_c10d import _ProcessGroupWrapper

MISMATCH = "Detected mismatch between collectives"
"""How the wrapper's complaint begins."""


@contextmanager
def checking(enabled: bool) -> Iterator[None]:
    """A process group made in here compares its operations; torch's debug level is as before afterwards."""
    from torch._C._distributed_c10d import DebugLevel, get_debug_level, set_debug_level

    if not enabled:
        yield
        return
    before = get_debug_level()
    set_debug_level(DebugLevel.DETAIL)
    try:
        yield
    finally:
        set_debug_level(before)


def is_checking() -> bool:
    """Whether the default group's operations are compared."""
    return bool(_checked_backends())


def stop_checking() -> None:
    """The default group's operations run unchecked from here on. Every rank calls it at the same place.

    Not where ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` asks for more than we do.
    """
    import torch.distributed as dist
    from torch._C._distributed_c10d import DebugLevel, get_debug_level

    if dist.group.WORLD is None or get_debug_level() == DebugLevel.DETAIL:
        return
    for device, checked in _checked_backends().items():
        # Registered under another type, because the first of a type stays.
        dist.group.WORLD._register_backend(device, dist.ProcessGroup.BackendType.CUSTOM, checked.wrapped_pg)


def _checked_backends() -> dict[device, _ProcessGroupWrapper]:
    """The default group's wrappers, by the kind of device whose tensors they take."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import _ProcessGroupWrapper

    group = dist.group.WORLD
    if group is None:
        return {}
    found = {device: group._get_backend(device) for device in group._device_types}
    return {device: backend for device, backend in found.items() if isinstance(backend, _ProcessGroupWrapper)}
