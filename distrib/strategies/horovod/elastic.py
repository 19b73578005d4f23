"""A job that goes on while its ranks change: what `horovod.elastic` promises, on the state we have anyway.

A rank's weights and optimizer change only where a step is complete, and nothing is sent in between. So
each holds the state after some whole number of steps whenever a collective fails, and there is no copy to
keep or to go back to: the ranks that are left take the state of the one that is furthest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from distrib.errors import LaunchError
from distrib.parallel.replica import Replica
from distrib.parallel.state import named_weights
from distrib.strategies.horovod import collectives, engine
from distrib.strategies.horovod.exchange import Exchange
from distrib.world import World

if TYPE_CHECKING:
    from distrib.core import StepResult

T = TypeVar("T")


UNTRAINED, HALF = -1, -2
"""In place of the number of steps a rank's state has seen: none, or another's that broke off on its way."""


class RanksChangedError(Exception):
    """The launcher has ranks to add or to take away: raised between two steps, on all ranks alike."""


class Fixed:
    """The ranks that the job began with, to its end."""

    live_step = None

    def __init__(self, replica: Replica, *, world: World) -> None:
        self.world = world
        collectives.broadcast(named_weights(replica.module))

    def run(self, body: Callable[[], T]) -> T:
        """What ``body`` returns."""
        return body()

    def train_step(self, step: int, train: Callable[[], StepResult]) -> StepResult:
        """Performs a step."""
        return train()

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum over all ranks."""
        return collectives.add_up(vector)


class Elastic:
    """Runs training again on the ranks there are, each time they have changed.

    Args:
        world: this rank's place when it started.
        options: Horovod's settings, in the variables it reads them from each time it starts.
    """

    def __init__(
        self, replica: Replica, exchange: Exchange, *, world: World, options: Mapping[str, str]
    ) -> None:
        self.world = world
        self._done = UNTRAINED
        self._replica, self._exchange = replica, exchange
        self._options = options
        self._wanted = threading.Event()
        self._agreed = False

    @property
    def live_step(self) -> int | None:
        """Steps that this rank's state has seen; None: nobody has trained yet."""
        return None if self._done == UNTRAINED else self._done

    def run(self, body: Callable[[], T]) -> T:
        """What ``body`` returns in the end. Raises what it raises, but for the loss of a rank."""
        from horovod.common.elastic import notification_manager
        from horovod.common.exceptions import HorovodInternalError

        notification_manager.init()
        notification_manager.register_listener(self)
        try:
            while True:
                try:
                    self._sync()
                    return body()
                except (HorovodInternalError, RanksChangedError):
                    self._meet_again()
        finally:
            notification_manager.remove_listener(self)

    def on_hosts_updated(self, timestamp: int, result: int) -> None:
        """Called by a thread of Horovod's, on rank 0 alone, when the launcher has found or lost hosts."""
        self._wanted.set()

    def train_step(self, step: int, train: Callable[[], StepResult]) -> StepResult:
        """Performs a step, unless the ranks are to change first."""
        if self._agreed:
            raise RanksChangedError
        result = train()
        self._done = step + 1
        return result

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum over all ranks; by the way they learn whether one of them was told of a change."""
        total = collectives.add_up(torch.cat([vector, vector.new_tensor([self._wanted.is_set()])]))
        self._agreed = bool(total[-1] > 0)
        return total[:-1]

    def _sync(self) -> None:
        """Gives every rank the state of the one that has done most steps."""
        done = collectives.gather(self._done)
        most = max(done)
        if most < 0 and min(done) == HALF:
            raise LaunchError("no rank that is left holds a whole state; resume=<run directory> goes on")
        if most == UNTRAINED or min(done) < most:
            self._done = most if self._done == most else HALF
            collectives.broadcast_replica(self._replica, root=done.index(most))
        self._done = most

    def _meet_again(self) -> None:
        """Leaves the ranks of before, a gradient half summed with them, and meets those of now."""
        self._exchange.forget()
        self._replica.optimizer.zero_grad(set_to_none=True)
        self._agreed = False
        self._wanted.clear()
        self.world = engine.restart(self.world, options=self._options)
