"""A real all-reduce by each installed engine."""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from distrib.doctor.findings import Finding
from distrib.errors import DistribError, LaunchError, PeerLostError

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.world import World

PROBES = {
    "horovod": "distrib.strategies.horovod.probe",
    "deepspeed": "distrib.strategies.deepspeed.probe",
}
"""Optional packages, and the module beside each one's strategy whose ``all_reduce(world, value)`` adds up a
tensor over all ranks in place and returns how the package was built."""

NUM_ELEMENTS = 2**20


def try_torch(world: World) -> Finding:
    """Sums 4 MiB over all ranks by torch's own process group, which is open."""
    import torch.distributed as dist

    def add_up(value: Tensor) -> str:
        moved = value.to(world.device)
        dist.all_reduce(moved)
        value.copy_(moved)
        return str(dist.get_backend())

    return _tried("torch", world, add_up)


def try_engine(package: str, world: World) -> Finding:
    """The same by an optional engine; a note where it is not installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return Finding(area="engines", name=package, verdict="note", seen="not installed")
    probe = importlib.import_module(PROBES[package])
    return _tried(package, world, lambda value: probe.all_reduce(world, value))


def is_consequence(error: BaseException) -> bool:
    """Whether it only says that another rank is gone or silent."""
    from distrib.rendezvous import lost_peer

    return isinstance(error, PeerLostError) or lost_peer(error)


def _tried(name: str, world: World, add_up: Callable[[Tensor], str]) -> Finding:
    import torch

    value = torch.full((NUM_ELEMENTS,), float(world.rank + 1))
    try:
        start = time.perf_counter()
        built = add_up(value)
        seconds = time.perf_counter() - start
        expected = world.size * (world.size + 1) / 2
        if not bool((value == expected).all()):
            raise LaunchError(f"the sum over ranks is {value[0].item()}, not {expected}")
    except (DistribError, RuntimeError, OSError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            area="engines",
            name=name,
            verdict="fail",
            seen=f"all-reduce on {world.size} ranks, rank {world.rank} on {socket.gethostname()}: {words}",
            remedy="choose no strategy of this engine until that is mended",
            is_consequence=is_consequence(error),
        )
    return Finding(
        area="engines",
        name=name,
        verdict="ok",
        seen=f"{version(name)} ({built}): {world.size} ranks summed 4 MiB in {seconds:.2f} s, start included",
    )
