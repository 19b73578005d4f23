"""Microbatches by measured speed: a rank that takes three times as long is given a third as many.

Who runs a microbatch changes nothing but the order in which gradients are added up. What matters is that
all ranks agree, also the thread that collates ahead: speeds measured in one window of steps are added up
while the next step runs, and count from where nothing is collated yet.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
import torch.distributed as dist
from torch import Tensor

from distrib.core import DataShard
from distrib.parallel.accumulate import Context

EVERY = 8
"""Steps of a window: a message of 8 bytes per rank for each."""


def share_out(speeds: Sequence[float], count: int) -> list[int]:
    """How many of ``count`` equal pieces of work each rank is given so that the last is done soonest.

    A rank with a speed of 0 is not there and gets none. Every other gets one at least, as one without would
    run a ghost that takes as long; with fewer pieces than ranks the first ones get one. Then one piece after
    another goes to the rank that would be done with it first, which is the optimum. N ranks whose speeds
    add up to V are done after (count + N - 1) / V at the latest, 1 + (N - 1) / count times the ideal, unless
    one of them is so slow that its only piece takes longer.
    """
    there = [rank for rank, speed in enumerate(speeds) if speed > 0]
    shares = [0] * len(speeds)
    for rank in there[:count]:
        shares[rank] = 1
    waiting = [(2 / speeds[rank], rank) for rank in there]
    heapq.heapify(waiting)
    for _ in range(count - len(there)):
        _, rank = waiting[0]
        shares[rank] += 1
        heapq.heapreplace(waiting, ((shares[rank] + 1) / speeds[rank], rank))
    return shares


def deal(shares: Sequence[int]) -> list[int]:
    """The owner of each piece: everybody's spread evenly over the whole, as the first pieces are longest."""
    places = [((turn + 0.5) / share, rank) for rank, share in enumerate(shares) for turn in range(share)]
    return [rank for _, rank in sorted(places)]


@lru_cache(maxsize=16)
def owners_by_speed(speeds: tuple[float, ...], count: int) -> Sequence[int]:
    """Which rank runs each of ``count`` microbatches."""
    return deal(share_out(speeds, count))


class Speeds:
    """How fast each rank is, by the step from which on that counts; all alike until something is known.

    Args:
        lead: steps between the one that runs and the last one that may have speeds of its own, at most.
    """

    def __init__(self, *, size: int, lead: int) -> None:
        self._kept = lead + 1
        self._known: list[tuple[int, tuple[float, ...]]] = [(0, (1.0,) * size)]

    def learn(self, speeds: Sequence[float], *, first: int) -> None:
        """``speeds`` count from step ``first`` on, in place of what was known from there.

        Nothing happens where that is known already, at once where not: a thread may be collating.
        """
        learnt = first, tuple(speeds)
        if learnt not in self._known:
            earlier = [known for known in self._known if known[0] < first]
            self._known = [*earlier[-self._kept :], learnt]

    def owners(self, step: int, count: int) -> Sequence[int]:
        """Which rank runs each of the ``count`` microbatches of a step."""
        speeds = next(speeds for first, speeds in reversed(self._known) if first <= step)
        return owners_by_speed(speeds, count)

    @property
    def spread(self) -> float:
        """How many times faster the fastest rank is than the slowest, as last learnt."""
        there = [speed for speed in self._known[-1][1] if speed > 0]
        return max(there) / min(there)


class Stopwatch:
    """Adds up how long a device took for what ran within `timed`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: list[float] = []
        self._events: list[tuple[torch.Event, torch.Event]] = []

    @contextmanager
    def timed(self, context: Context) -> Iterator[None]:
        """``context``, with the time taken; an accelerator is not waited for."""
        if self._device.type == "cpu":
            began = time.perf_counter()
            with context():
                yield
            self._seconds.append(time.perf_counter() - began)
            return
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        start.record()
        with context():
            yield
        end.record()
        self._events.append((start, end))

    def take(self) -> float:
        """Mean seconds since the last time, 0 for none. Waits until the device is done with them."""
        for start, end in self._events:
            end.synchronize()
            self._seconds.append(start.elapsed_time(end) / 1000)
        seconds = self._seconds
        self._seconds, self._events = [], []
        return sum(seconds) / len(seconds) if seconds else 0.0


class Balancer:
    """Measures how fast each rank runs a microbatch's forward pass, which waits for nobody.

    Args:
        prefetch: `Job.prefetch`.
    """

    def __init__(self, *, rank: int, size: int, device: torch.device, prefetch: int) -> None:
        self._rank, self._size, self._prefetch = rank, size, prefetch
        self._device = device
        self._stopwatch = Stopwatch(device)
        self._speeds = Speeds(size=size, lead=prefetch + 1)
        self._under_way: tuple[Tensor, dist.Work] | None = None

    @property
    def shard(self) -> DataShard:
        """This rank's share, by the speeds that count at a step."""
        return DataShard(index=self._rank, count=self._size, owners=self._speeds.owners)

    def watched(self, forward_context: Context) -> Context:
        """``forward_context``, measured."""
        return partial(self._stopwatch.timed, forward_context)

    def step_done(self, step: int) -> None:
        """Takes in what the ranks measured in the last window, begins to add up this one's."""
        if self._under_way is not None:
            vector, work = self._under_way
            work.wait()
            self._under_way = None
            self._learn(vector.tolist(), first=step + self._prefetch + 1)
        if (step + 1) % EVERY == 0:
            vector = torch.zeros(self._size, dtype=torch.float64, device=self._device)
            vector[self._rank] = self._stopwatch.take()
            work = dist.all_reduce(vector, async_op=True)
            assert work is not None
            self._under_way = vector, work

    def _learn(self, seconds: Sequence[float], *, first: int) -> None:
        if all(value > 0 for value in seconds):
            self._speeds.learn([1 / value for value in seconds], first=first)

    def measures(self) -> dict[str, float]:
        """How many times faster the fastest rank is than the slowest."""
        return {"speed_spread": self._speeds.spread}
