"""Which hosts reach each other, how fast, and how far their clocks are apart."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from distrib.errors import LaunchError
from distrib.rendezvous import wait_for

if TYPE_CHECKING:
    from distrib.world import World

CONNECT_SECONDS = 3.0
ROUNDS = 30
"""Of the ping-pong that measures latency."""
BYTES = 4 * 2**20
SENDS = 4
MOST_HOSTS = 8
"""Up to here every pair is measured, beyond only each with the next."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two ranks on a line."""

    first: int
    second: int
    latency: float
    """Seconds for a small message, one way."""
    bandwidth: float
    """Bytes a second, one way."""
    clock_skew: float
    """Seconds by which the second's clock is ahead of the first's, to half a round trip."""


def exchange(world: World, name: str, value: Any, *, timeout: float = 60.0) -> list[Any]:
    """Every rank's ``value``, by rank. All ranks call it in the same order."""
    if world.store is None:
        return [value]
    world.store.set(f"doctor/{name}/{world.rank}", json.dumps(value))
    keys = [f"doctor/{name}/{rank}" for rank in range(world.size)]
    if missing := wait_for(world.store, keys, time.monotonic() + timeout):
        raise LaunchError(f"rank {keys.index(missing[0])} did not report its {name} within {timeout:g} s")
    return [json.loads(world.store.get(key)) for key in keys]


def leave(world: World, *, timeout: float = 60.0) -> None:
    """Rank 0, which serves the store, returns when all others have asked it for the last time."""
    if world.store is None:
        return
    world.store.set(f"doctor/left/{world.rank}", "")
    if world.rank == 0:
        everyone = [f"doctor/left/{rank}" for rank in range(world.size)]
        wait_for(world.store, everyone, time.monotonic() + timeout)


@contextmanager
def listening(address: str) -> Iterator[int]:
    """Takes connections at a free port of ``address`` and closes them; yields the port."""
    with socket.create_server((address, 0)) as server:
        over = threading.Event()

        def take() -> None:
            while not over.is_set():
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=take, name="listening", daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=1.0)


def unreachable(places: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Which of these addresses do not take a connection from here, and why not."""
    failures = {}
    for host, port in places:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            failures[host] = str(error)
    return failures


def pairs_to_measure(hosts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of ranks: one rank a host, or all ranks where there is one host only."""
    first_ranks = sorted({host: rank for rank, host in reversed(list(enumerate(hosts)))}.values())
    ranks = first_ranks if len(first_ranks) > 1 else list(range(len(hosts)))
    if len(ranks) <= MOST_HOSTS:
        return [(a, b) for i, a in enumerate(ranks) for b in ranks[i + 1 :]]
    return list(pairwise(ranks))


def measure(world: World, pair: tuple[int, int]) -> Pair | None:
    """Sends back and forth between two ranks; only the first returns what was measured.

    Every rank of the default process group may call it; those outside the pair return at once.
    """
    if world.rank not in pair:
        return None
    import torch

    first, second = pair
    mine = world.rank == first
    small, large = torch.zeros(1, dtype=torch.float64), torch.empty(BYTES, dtype=torch.uint8)
    trips = [_ping(small, first=first, second=second, mine=mine) for _ in range(ROUNDS)]
    sends = [_timed(lambda: _send(large, first=first, second=second, mine=mine)) for _ in range(SENDS)]
    if not mine:
        return None
    shortest = min(trips)
    return Pair(
        first=first,
        second=second,
        latency=statistics.median(trip for trip, _ in trips) / 2,
        bandwidth=BYTES / max(min(sends), 1e-9),
        clock_skew=shortest[1],
    )


def _ping(clock: Any, *, first: int, second: int, mine: bool) -> tuple[float, float]:
    """Seconds of a round trip, and how far the other's clock was ahead in its middle (Cristian 1989)."""
    import torch.distributed as dist

    if not mine:
        dist.recv(clock, src=first)
        clock.fill_(time.time())
        dist.send(clock, dst=first)
        return 0.0, 0.0
    start, before = time.perf_counter(), time.time()
    dist.send(clock, dst=second)
    dist.recv(clock, src=second)
    trip = time.perf_counter() - start
    return trip, clock.item() - (before + trip / 2)


def _send(large: Any, *, first: int, second: int, mine: bool) -> None:
    """The large message one way, and a byte back: a send alone returns before it has arrived."""
    import torch.distributed as dist

    if mine:
        dist.send(large, dst=second)
        dist.recv(large[:1], src=second)
    else:
        dist.recv(large, src=first)
        dist.send(large[:1], dst=first)


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
