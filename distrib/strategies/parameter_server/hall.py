"""What a server's threads share: who is there, what they have pushed, and what they wait for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from distrib.errors import LaunchError, TrainingError
from distrib.strategies.parameter_server.rules import Push, Rules, Seat, Sender
from distrib.strategies.parameter_server.session import Session
from distrib.strategies.parameter_server.sharing import Decision, Sharing


@dataclass(kw_only=True)
class Result:
    """What the latest update was made of; the number of the step is the version."""

    norm: float = math.nan
    """Of a gradient; where the update is of none, or before the first one, there is no norm."""
    loss: float = 0.0
    updated: bool = True


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """What the servers have agreed on, or what one of them has to say to it."""

    step: int = -1
    redone: int = 0
    """`Push.redone` of the pushes that it is about."""
    senders: list[Sender] = field(default_factory=list)
    """The workers whose pushes are in the step, by rank."""
    square: float = 0.0
    """The squared norm of their sum, or of a server's part of it."""
    redo: bool = False
    """Whether the step is run again, because they are too few."""

    @property
    def at(self) -> tuple[int, int]:
        """Grows from one time that the servers agree to the next."""
        return self.step, self.redone


Meet = tuple[int, int]
"""Which meeting it is: the steps done before it, and its number since then."""


@dataclass(kw_only=True)
class Meeting:
    """Vectors that are added up once everyone has come."""

    came: dict[int, Tensor] = field(default_factory=dict)
    total: Tensor | None = None


class EndedError(Exception):
    """The server is ending for another reason: its threads end too."""


class Hall:
    """The state of a server, behind one condition.

    Args:
        may_lose: whether the job goes on when a worker is lost.
        min_workers: fewer than these end it all the same.
        sharing: of the microbatches; None: not by speed, or another server's.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        num_workers: int,
        may_lose: Callable[[int], bool],
        min_workers: int,
        sharing: Sharing | None = None,
    ) -> None:
        self.changed = threading.Condition()
        self.rules, self.sharing = rules, sharing
        self.num_workers = num_workers
        self._may_lose, self._min_workers = may_lose, min_workers
        self.seats = {rank: Seat(rank=rank, since=-1) for rank in range(num_workers)}
        self.lost: dict[int, str] = {}
        self.pushes: list[Push] = []
        self.version: int | None = None
        self._first = 0
        self.redone = 0
        """How often a step has been run again because a worker was lost in it."""
        self.result = Result()
        self.agreed = Agreed()
        """On the step of the last update, or on that of the next."""
        self.failure: BaseException | None = None
        self._meetings: dict[Meet, Meeting] = {}
        self._tallies: dict[int, Tensor] = {}
        self.stop_at = 0

    @contextmanager
    def told(self) -> Iterator[None]:
        """Holds the state; who waits for it looks anew afterwards."""
        with self.changed:
            yield
            self.changed.notify_all()

    def wait_for(self, ready: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Waits, with the state held, until ``ready``. Raises `EndedError` where the server ends first."""
        came = self.changed.wait_for(lambda: ready() or self.failure is not None, timeout)
        if self.failure is not None:
            raise EndedError
        return came

    def wait_while_telling(self, session: Session, ready: Callable[[], bool]) -> None:
        """As `wait_for`, and the peer that is to be answered hears meanwhile that this server lives."""
        while not self.wait_for(ready, timeout=session.beat_seconds):
            session.beat()

    def push(self, push: Push) -> None:
        """Takes a worker's push; one of a step that is over comes too late and counts as done.

        So does that of a worker that is taken for dead, though its last words are still coming.
        """
        seat = self.seats.get(push.rank)
        if seat is None or seat.life != push.life:
            push.applied = True
            return
        if self.version is None:
            self.version = self._first = push.step
        push.base = max(push.base, self._first)
        seat.clock = max(seat.clock, push.step + 1)
        is_over = self.rules.collective and push.step < self.version
        if is_over or push.step < seat.applied:  # the latter: sent again to a server that took over
            push.applied = True
        elif push.redone < self.redone:
            push.redo = True
        else:
            self.pushes.append(push)

    def due(self) -> list[Push]:
        """The pushes of the next update; empty: not yet."""
        if self.version is None:
            return []
        # Another server may have told a worker to run the step again before this one hears of it.
        ahead = {push.rank for push in self.pushes if push.redone > self.redone}
        pushes = [push for push in self.pushes if push.rank not in ahead]
        seats = {rank: seat for rank, seat in self.seats.items() if rank not in ahead}
        return self.rules.due(pushes, seats, version=self.version)

    def finish(self, used: list[Push], result: Result) -> None:
        """Notes an update; pushes of its step that are not in it are dropped."""
        assert self.version is not None
        over = [p for p in self.pushes if p in used or (self.rules.collective and p.step == self.version)]
        for push in over:
            push.applied = True
            if push.rank in self.seats:
                self.seats[push.rank].applied = push.step + 1
        self.pushes = [push for push in self.pushes if not push.applied]
        if self.sharing is not None:
            seconds = {push.rank: push.seconds for push in over}
            self.sharing.update(self.version, seconds=seconds, present=self._due_from(self.version))
        self.version += self.rules.stride
        self.result = result

    def redo(self) -> None:
        """The step under way is run again by the workers that are there; what was pushed of it is dropped."""
        assert self.version is not None
        self.redone += 1
        for push in self.pushes:
            push.redo = push.redone < self.redone
        self.pushes = [push for push in self.pushes if not push.redo]
        if self.sharing is not None:
            self.sharing.redo(self.version, present=self._due_from(self.version))

    def decisions_after(self, step: int) -> list[Decision]:
        """On the shares: those that do not count at ``step`` yet."""
        return [] if self.sharing is None else self.sharing.later_than(step)

    def _due_from(self, step: int) -> set[int]:
        """Whose pushes a step is not finished without."""
        return {seat.rank for seat in self.seats.values() if seat.since <= step}

    def leave(self, rank: int) -> None:
        """A worker is done."""
        with self.told():
            del self.seats[rank]

    def is_empty(self) -> bool:
        """Whether every worker has left or is lost. Waits while the last one is being answered.

        Raises `EndedError` where one was lost that may not be.
        """
        with self.changed:
            if self.failure is not None:
                raise EndedError
            return not self.seats

    def lose(self, rank: int, error: LaunchError) -> None:
        """A worker is lost: the job goes on without it, or this server fails with ``error``."""
        with self.told():
            self.seats.pop(rank, None)
            self.lost[rank] = str(error)
            self._tallies.pop(rank, None)
            if not self._may_lose(rank):
                self.failure = self.failure or error
            elif len(self.seats) < self._min_workers:
                self.failure = self.failure or TrainingError(
                    f"{len(self.seats)} workers are left (strategy.min_workers={self._min_workers}): "
                    + "; ".join(self.lost.values())
                )

    def fail(self, error: BaseException) -> None:
        """Ends the server with ``error``."""
        with self.told():
            self.failure = self.failure or error

    def join(self, rank: int, *, life: int, step: int | None) -> tuple[int, int, list[Decision]]:
        """Seats a worker that comes into the running job.

        Returns the step it begins at, its `Push.redone` there, and the decisions on the shares that count
        there and later. Waits for the job to run; ``step`` is what the first server has said, where it has:
        this one may still be making the update before, and its weights would be a step old. Of a step that
        takes all workers' pushes, it pushes anew what it had pushed in an earlier life.
        """
        with self.told():
            self.wait_for(lambda: self._runs(step))
            assert self.version is not None
            slowest = min(seat.clock for seat in self.seats.values())
            begin = step if step is not None else self.version if self.rules.collective else slowest
            self.seats[rank] = Seat(rank=rank, since=begin, clock=begin, life=life)
            if self.rules.collective:
                self.pushes = [push for push in self.pushes if push.rank != rank]
            self.lost.pop(rank, None)
            return begin, self.redone, [] if self.sharing is None else list(self.sharing.decisions)

    def _runs(self, step: int | None) -> bool:
        if self.version is None or not any(seat.clock for seat in self.seats.values()):
            return False
        return step is None or not self.rules.collective or self.version >= step

    def meet(self, rank: int, key: Meet, vector: Tensor, *, session: Session) -> Tensor:
        """The sum of all workers' vectors; waits for every worker that was there before step ``key[0]``."""
        with self.told():
            meeting = self._meetings.setdefault(key, Meeting())
            meeting.came[rank] = vector
        with self.told():
            self.wait_while_telling(
                session, lambda: meeting.total is not None or self._all_came(key[0], meeting)
            )
            if meeting.total is None:
                meeting.total, meeting.came = sum_of(meeting.came), {}
                self._forget_meetings(but=key)
            return meeting.total

    @property
    def totals(self) -> dict[Meet, Tensor]:
        """Of this meeting and the one before: a server that takes over may be asked again."""
        return {key: meeting.total for key, meeting in self._meetings.items() if meeting.total is not None}

    def _forget_meetings(self, *, but: Meet) -> None:
        over = [key for key in self.totals if key != but]
        for key in over[:-1]:
            del self._meetings[key]

    def _all_came(self, step: int, meeting: Meeting) -> bool:
        return {seat.rank for seat in self.seats.values() if seat.since < step} <= meeting.came.keys()

    def tally(self, rank: int, vector: Tensor, *, vote: bool) -> Tensor:
        """The sum of what every worker sent last. A vote to stop fixes the step that all can stop at."""
        with self.told():
            self._tallies[rank] = vector
            if vote and not self.stop_at:
                furthest = max(seat.clock for seat in self.seats.values())
                self.stop_at = (furthest // self.rules.stride + 1) * self.rules.stride
            return sum_of(self._tallies)

    def state(self) -> dict[str, Any]:
        """What a server that takes over must know of this one beside the `totals`, as JSON.

        With the state held.
        """
        return {
            "version": self.version,
            "first": self._first,
            "redone": self.redone,
            "result": asdict(self.result),
            "agreed": asdict(self.agreed),
            "seats": [asdict(seat) for seat in self.seats.values()],
            "lost": list(self.lost.items()),
            "tallies": [[rank, vector.tolist()] for rank, vector in self._tallies.items()],
            "meetings": list(self.totals),
            "stop_at": self.stop_at,
            "decisions": [] if self.sharing is None else self.sharing.decisions,
        }

    def restore(self, state: Mapping[str, Any], *, totals: Mapping[Meet, Tensor]) -> None:
        """Takes over another server's state; ``totals``: those of the meetings that are new to this one."""
        self.version, self._first, self.stop_at = state["version"], state["first"], state["stop_at"]
        self.redone = state["redone"]
        senders = [(rank, life) for rank, life in state["agreed"]["senders"]]
        self.result, self.agreed = (
            Result(**state["result"]),
            Agreed(**{**state["agreed"], "senders": senders}),
        )
        self.seats = {values["rank"]: Seat(**values) for values in state["seats"]}
        self.lost = dict(state["lost"])
        self._tallies = {rank: torch.tensor(values, dtype=torch.float64) for rank, values in state["tallies"]}
        known = {**self.totals, **totals}
        self._meetings = {
            (step, count): Meeting(total=known[step, count]) for step, count in state["meetings"]
        }
        if self.sharing is not None:
            self.sharing.decisions = [(first, speeds) for first, speeds in state["decisions"]]


def sum_of(vectors: Mapping[int, Tensor]) -> Tensor:
    """In the order of ranks: the same to the bit whoever came first."""
    total = torch.zeros_like(next(iter(vectors.values())))
    for _, vector in sorted(vectors.items()):
        total += vector
    return total
