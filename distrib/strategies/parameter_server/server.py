"""A rank that serves: one thread hears each worker, the main thread makes the updates."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.distributed import DistError

from distrib.core import Job
from distrib.errors import LaunchError
from distrib.strategies.parameter_server.agreement import Agreement
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.facts import Facts
from distrib.strategies.parameter_server.hall import EndedError, Hall, Result
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Push
from distrib.strategies.parameter_server.session import PULL, PUSH, Message, Op, Session, as_bytes

LOOK_SECONDS = 0.1
"""How often a server that lacks a worker looks whether it has been started again."""


class Server:
    """Holds one `Part`, and serves until every worker has left.

    Args:
        damping: divides the learning rate of a late push, where the mode makes an update per push.
    """

    def __init__(
        self, job: Job, part: Part, hall: Hall, *, doors: Doors, agreement: Agreement, damping: bool
    ) -> None:
        self.job, self.part, self.hall = job, part, hall
        self._doors, self._agreement, self._damping = doors, agreement, damping
        self._names = [name for bucket in part.layout.buckets for name in bucket.starts]
        self._sum = torch.empty_like(part.vector)
        self._restarts = dict.fromkeys(range(hall.num_workers), 0)
        self.facts = Facts()

    def serve(self) -> None:
        """Returns when all workers have left. Raises what made it impossible to go on."""
        for rank in range(self.hall.num_workers):
            self._attend(rank)
        try:
            while self.hall.seats:
                pushes = self._next()
                if pushes:
                    self._update(pushes)
                else:
                    self._look_for_restarts()
        except EndedError:
            assert self.hall.failure is not None
            raise self.hall.failure from None
        except BaseException as error:
            self.hall.fail(error)
            raise

    def _next(self) -> list[Push]:
        """The next update's pushes; empty after a while where a worker is missing, and at the end."""
        with self.hall.changed:
            timeout = LOOK_SECONDS if self.hall.lost else None
            self.hall.wait_for(lambda: bool(self.hall.due()) or not self.hall.seats, timeout=timeout)
            return self.hall.due()

    def _look_for_restarts(self) -> None:
        for rank in list(self.hall.lost):
            try:
                number = self._doors.knocked(rank)
            except DistError:
                return  # rank 0 has ended and its store with it: its session says the rest
            if number > self._restarts[rank]:
                self._restarts[rank] = number
                self._attend(rank)

    def _attend(self, rank: int) -> None:
        # A daemon: it may be waiting for a worker when the server ends, and gloo's waits cannot be broken.
        threading.Thread(target=self._hear, args=(rank,), name=f"worker-{rank}", daemon=True).start()

    def _hear(self, rank: int) -> None:
        try:
            session = self._doors.open(rank, number=self._restarts[rank])
            Desk(self, session, rank).serve()
            self.hall.leave(rank)
        except LaunchError as error:
            print(f"{error}", file=sys.stderr, flush=True)
            self.hall.lose(rank, error)
        except EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self.hall.fail(error)

    def _update(self, pushes: list[Push]) -> None:
        began = time.perf_counter()
        if self.hall.rules.collective:
            self._update_together(pushes)
        else:
            self._update_alone(pushes[0])
        self.facts.busy += time.perf_counter() - began

    def _update_together(self, pushes: list[Push]) -> None:
        """One update by the sum of the workers' gradients, added up in the order of their ranks.

        Where a worker is missing, its targets are too: the sum is divided by those that are there.
        """
        by_rank = {push.rank: push for push in pushes}

        def squared_norm(ranks: Collection[int]) -> float:
            self._add_up([by_rank[rank] for rank in sorted(ranks)])
            return self.part.squared_norm(self._sum, touched=_touched(pushes))

        ranks, square = self._agreement.settle(by_rank.keys(), squared_norm=squared_norm)
        used = [by_rank[rank] for rank in ranks]
        version = pushes[0].step
        norm = math.sqrt(square)
        loss = sum(push.loss for push in used) * self._factor(used)
        with self.hall.told():
            updated = bool(used) and self.part.update(
                self._sum, touched=_touched(used), norm=norm, lr=self.job.lr(version)
            )
            for push in used:
                self.facts.staleness(version - push.base)
            self.hall.finish(pushes, Result(norm=norm, loss=loss, updated=updated))

    def _add_up(self, pushes: list[Push]) -> None:
        self._sum.zero_() if not pushes else self._sum.copy_(pushes[0].vector)
        for push in pushes[1:]:
            self._sum += push.vector
        factor = self._factor(pushes)
        if factor != 1.0:
            self._sum *= factor

    def _factor(self, pushes: list[Push]) -> float:
        """What makes the gradient of some workers that of the mean over their own targets."""
        if len(pushes) == self.hall.num_workers:
            return 1.0
        return pushes[0].step_targets / max(sum(push.targets for push in pushes), 1.0) if pushes else 1.0

    def _update_alone(self, push: Push) -> None:
        """One update by one worker's gradient, the mean over its own targets.

        Its learning rate is the step's times its share of the step's targets, so that the pushes of one
        step together move the weights as far as one synchronous update.
        """
        assert self.hall.version is not None
        staleness = self.hall.version - push.base
        share = push.targets / push.step_targets
        lr, updated = self.job.lr(push.step) * share / self._damp(staleness), True
        with self.hall.told():
            if share:
                push.vector /= share
                updated = self.part.update(push.vector, touched=push.touched, norm=push.norm / share, lr=lr)
            self.facts.staleness(staleness)
            loss = push.loss / share if share else 0.0
            norm = push.norm / share if share else push.norm
            self.hall.finish([push], Result(norm=norm, loss=loss, updated=updated))

    def _damp(self, staleness: int) -> float:
        """How many times more stale a push is than when all workers are equally fast, where that counts."""
        return max(1.0, (staleness + 1) / len(self.hall.seats)) if self._damping else 1.0

    def names(self, mask: Tensor) -> frozenset[str]:
        """The parameters a worker's mask names."""
        return frozenset(name for name, on in zip(self._names, mask.tolist(), strict=True) if on)

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return len(self._names)


def _touched(pushes: list[Push]) -> frozenset[str]:
    return frozenset().union(*(push.touched for push in pushes))


class Desk:
    """One worker's session on a server."""

    def __init__(self, server: Server, session: Session, rank: int) -> None:
        self._server, self._session, self._rank = server, session, rank
        self._part, self._hall = server.part, server.hall
        self._spare: Tensor | None = None
        self._answers: dict[int, Callable[[Message], None]] = {
            Op.STEP: self._step,
            Op.FETCH: self._fetch,
            Op.PLACE: self._place,
            Op.MEET: self._meet,
            Op.TALLY: self._tally,
            Op.JOIN: self._join,
            Op.SLOTS: lambda _: self._session.tell(Op.SLOTS, text=self._part.slots()),
            Op.GET: self._get,
            Op.PUT: self._put,
            Op.FACTS: self._facts,
        }

    def serve(self) -> None:
        """Answers until the worker leaves."""
        while (message := self._session.hear()).op != Op.LEAVE:
            self._answers[message.op](message)

    def _step(self, message: Message) -> None:
        step, base = int(message.numbers[0]), int(message.numbers[1])
        vector = torch.empty_like(self._part.vector) if self._spare is None else self._spare
        self._receive_buckets(vector)
        trailer = torch.empty(4 + self._server.num_parameters, dtype=torch.float64)
        loss, targets, step_targets, norm = self._session.receive(trailer)[:4].tolist()
        push = Push(
            rank=self._rank,
            step=step,
            base=base,
            vector=vector,
            loss=loss,
            targets=targets,
            step_targets=step_targets,
            norm=norm,
            touched=self._server.names(trailer[4:]),
        )
        with self._hall.told():
            self._hall.push(push)
        with self._hall.changed:
            self._hall.wait_for(lambda: self._hall.rules.may_go_on(push, version=self._hall.version or 0))
            self._spare = vector if push.applied else None
            # A copy: the next update may be made while this one is still on its way.
            weights = (
                self._part.vector.clone() if self._spare is None else self._spare.copy_(self._part.vector)
            )
            result = self._hall.result
            numbers = (self._hall.version or 0, result.norm, result.loss, result.updated, self._hall.stop_at)
        self._session.tell(Op.STEP, *numbers)
        self._send_buckets(weights)

    def _fetch(self, message: Message) -> None:
        with self._hall.changed:
            weights, version = self._part.vector.clone(), self._hall.version
        self._session.tell(Op.FETCH, version or 0)
        self._send_buckets(weights)

    def _place(self, message: Message) -> None:
        weights = torch.empty_like(self._part.vector)
        self._receive_buckets(weights)
        with self._hall.told(), torch.no_grad():
            self._part.vector.copy_(weights)
            self._part.finish_loading()
        self._session.tell(Op.PLACE)

    def _meet(self, message: Message) -> None:
        step, count, length = map(int, message.numbers[:3])
        vector = self._session.receive(torch.empty(length, dtype=torch.float64))
        self._session.send(self._hall.meet(self._rank, (step, count), vector))

    def _tally(self, message: Message) -> None:
        vote, length = bool(message.numbers[0]), int(message.numbers[1])
        vector = self._session.receive(torch.empty(length, dtype=torch.float64))
        total = self._hall.tally(self._rank, vector, vote=vote)
        self._session.tell(Op.TALLY, self._hall.stop_at)
        self._session.send(total)

    def _join(self, message: Message) -> None:
        told = int(message.numbers[0])
        self._session.tell(Op.JOIN, self._hall.join(self._rank, None if told < 0 else told))

    def _get(self, message: Message) -> None:
        with self._hall.changed:
            value = as_bytes(self._part.slot(*message.text)).clone()
        self._session.send(value)

    def _put(self, message: Message) -> None:
        name, slot, dtype, shape = message.text
        value = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        self._session.receive(as_bytes(value))
        self._part.put_slot(name, slot, value)

    def _facts(self, message: Message) -> None:
        with self._hall.changed:
            self._session.tell(Op.FACTS, text=self._server.facts.taken())

    def _receive_buckets(self, vector: Tensor) -> None:
        buckets = enumerate(self._part.layout.buckets)
        places = [(number, bucket.places[self._part.server]) for number, bucket in buckets]
        works = [
            self._session.start_receive(vector[place], PUSH + 2 * number)
            for number, place in places
            if place.start < place.stop
        ]
        for work in works:
            work.wait()

    def _send_buckets(self, vector: Tensor) -> None:
        buckets = enumerate(self._part.layout.buckets)
        places = [(number, bucket.places[self._part.server]) for number, bucket in buckets]
        works = [
            self._session.start_send(vector[place], PULL + 2 * number)
            for number, place in places
            if place.start < place.stop
        ]
        for work in works:
            work.wait()
