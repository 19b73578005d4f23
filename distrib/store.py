"""The key-value store that ranks meet at: rank 0 serves it, unless torchrun's agent does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from typing import TYPE_CHECKING

from distrib.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from distrib.world import World

RETRY_SECONDS = 0.05


def connect(world: World, *, timeout: float) -> TCPStore:
    """Serves the store on rank 0, reaches it from the others.

    Raises `LaunchError` naming address and port: taken by another program, or no answer in time.
    """
    serves = world.rank == 0 and not world.store_is_served
    return _serve(world, timeout) if serves else _reach(world, timeout)


def _serve(world: World, timeout: float) -> TCPStore:
    from torch.distributed import DistNetworkError

    try:
        return _store(world, is_master=True, timeout=timeout)
    except DistNetworkError as error:
        raise LaunchError(
            f"rank 0 cannot serve at {world.master_address}:{world.master_port}: "
            f"{str(error).splitlines()[0]}. "
            "Set MASTER_PORT to a free port, the same on all ranks"
        ) from error


def _reach(world: World, timeout: float) -> TCPStore:
    deadline = time.monotonic() + timeout
    _wait_for_port(world, deadline, timeout)
    # A program that takes connections but does not speak the store's protocol would hold this
    # constructor for ever, whatever its own time limit says: seen with torch 2.13.
    store = _within(deadline - time.monotonic(), lambda: _store(world, is_master=False, timeout=timeout))
    if store is None:
        raise _unreachable(world, timeout, "it takes connections, but does not answer")
    return store


def _wait_for_port(world: World, deadline: float, timeout: float) -> None:
    """Probes until the port answers: `TCPStore` itself takes twice its time limit and prints stack traces."""
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection(_address(world), timeout=max(left, 0.1)).close()
            return
        except OSError as error:
            if left < RETRY_SECONDS:
                raise _unreachable(world, timeout, str(error)) from error
        time.sleep(RETRY_SECONDS)


def _store(world: World, *, is_master: bool, timeout: float) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        *_address(world),
        is_master=is_master,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=world.port_fd if is_master else None,
    )


def _address(world: World) -> tuple[str, int]:
    if world.master_address is None or world.master_port is None:
        raise LaunchError(f"rank {world.rank} of {world.size} was not told where rank 0 is")
    return world.master_address, world.master_port


def _within(seconds: float, make: Callable[[], TCPStore]) -> TCPStore | None:
    from torch.distributed import DistError

    made: Future[TCPStore] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except DistError as error:
            made.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    done, _ = wait([made], timeout=max(seconds, 0.1))
    return made.result() if done else None


def _unreachable(world: World, timeout: float, why: str) -> LaunchError:
    return LaunchError(
        f"missing after {timeout:g} s: rank 0 of {world.size}. Rank {world.rank} on {socket.gethostname()} "
        f"tried {world.master_address}:{world.master_port} ({why}). Look at rank 0's log, and whether this "
        "host reaches that address; raise timeouts.start if rank 0 is only slow"
    )
