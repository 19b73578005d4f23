"""A rank that serves: one thread hears each worker, the main thread makes the updates."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.distributed import DistError

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.hall import EndedError, Hall
from distrib.strategies.parameter_server.ledger import Ledger
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Push
from distrib.strategies.parameter_server.session import PULL, PUSH, Message, Op, Pending, Session, as_bytes
from distrib.strategies.parameter_server.updates import Update

LOOK_SECONDS = 0.1
"""How often a server looks whether a rank has been started again."""
TAKEN_OVER_PATIENCE = 3.0
"""How many times longer than ever a worker may take to come to a server's backup: it may have been at
work, and then have waited twice that time for the lost server."""


class Server:
    """Holds one `Part`, and serves until every worker has left.

    Args:
        partner: the rank that may become this server's backup while it runs; None: there is none.
    """

    def __init__(
        self, part: Part, hall: Hall, *, doors: Doors, update: Update, ledger: Ledger, partner: int | None
    ) -> None:
        self.part, self.hall, self.facts, self.ledger = part, hall, update.facts, ledger
        self.since = 0
        """The term in which this rank came to hold the part; 0: from the start."""
        self._doors, self._make_update, self._partner = doors, update, partner
        self._names = [name for bucket in part.layout.buckets for name in bucket.starts]
        self._restarts = dict.fromkeys(range(hall.num_workers), 0)
        self._knocks, self._looked_at = 0, 0.0

    def serve(self) -> None:
        """Returns when all workers have left. Raises what made it impossible to go on."""
        try:
            if self.since:
                self._restarts |= {rank: self._doors.knocked(rank) for rank in self.hall.seats}
            for rank in list(self.hall.seats):
                self._attend(rank)
            while self.hall.seats:
                if pushes := self._next():
                    self._update(pushes)
                self._look_for_restarts()
        except EndedError:
            assert self.hall.failure is not None
            self.ledger.end(self.hall.failure)
            raise self.hall.failure from None
        except BaseException as error:
            self.hall.fail(error)
            self.ledger.end(error)
            raise
        self.ledger.end(None)

    def _next(self) -> list[Push]:
        """The next update's pushes; empty after a while, and at the end."""
        with self.hall.changed:
            self.hall.wait_for(lambda: bool(self.hall.due()) or not self.hall.seats, timeout=LOOK_SECONDS)
            return self.hall.due()

    def _look_for_restarts(self) -> None:
        """Now and then, however busy: takes in who was lost and has been started again."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = now
        with suppress(DistError):  # rank 0 has ended and its store with it: its session says the rest
            before, self._knocks = self._knocks, self._doors.knocks()
            if self._knocks > before:
                for rank in range(1, self.hall.num_workers):
                    self._let_in_again(rank)
            if self.ledger.is_vacant and self._partner is not None and self._came_again(self._partner):
                self._take_backup(self._partner)

    def _let_in_again(self, rank: int) -> None:
        """A worker that was started again is let in; should its death have been missed, it is known now."""
        if not self._came_again(rank):
            return
        if rank in self.hall.seats:
            self.hall.lose(rank, LaunchError(f"lost worker rank {rank}: it was started again"))
            self.ledger.keep()
        self._attend(rank)

    def _came_again(self, rank: int) -> bool:
        """Whether a rank has been started again since this was last asked."""
        before = self._restarts.get(rank, 0)
        self._restarts[rank] = self._doors.knocked(rank)
        return self._restarts[rank] > before

    def _take_backup(self, rank: int) -> None:
        try:
            session = self._doors.open(rank, number=self._restarts[rank], since=self.since, patience=1.0)
        except LaunchError as error:
            print(f"notice: no backup: {error}", file=sys.stderr, flush=True)
            return
        self.ledger.begin(session, whole=True)
        print(f"notice: rank {rank} is this server's backup", file=sys.stderr, flush=True)

    def _attend(self, rank: int) -> None:
        # A daemon: it may be waiting for a worker when the server ends, and gloo's waits cannot be broken.
        given = (rank, self._restarts[rank])
        threading.Thread(target=self._hear, args=given, name=f"worker-{rank}", daemon=True).start()

    def _hear(self, rank: int, number: int) -> None:
        try:
            patience = TAKEN_OVER_PATIENCE if self.since else None
            session = self._doors.open(rank, number=number, since=self.since, patience=patience)
            Desk(self, session, rank).serve()
            with self.hall.told():  # the server ends with the last one, who must be answered before
                self.hall.leave(rank)
                self.ledger.keep()
                with suppress(LaunchError):  # it has left, whether it hears this or not
                    session.tell(Op.LEAVE)
        except LaunchError as error:
            self._lose(rank, error, number=number)
        except EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self.hall.fail(error)

    def _lose(self, rank: int, error: LaunchError, *, number: int) -> None:
        """A worker's session has failed; of one that has been started again meanwhile, it is an old one."""
        if number != self._restarts[rank]:
            return
        print(f"{error}", file=sys.stderr, flush=True)
        with suppress(EndedError):
            self.hall.lose(rank, error)
            self.ledger.keep()

    def _update(self, pushes: list[Push]) -> None:
        began = time.perf_counter()
        self._make_update(pushes)
        with self.hall.changed:
            self.facts.busy += time.perf_counter() - began

    def names(self, mask: Tensor) -> frozenset[str]:
        """The parameters a worker's mask names."""
        return frozenset(name for name, on in zip(self._names, mask.tolist(), strict=True) if on)

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return len(self._names)


class Desk:
    """One worker's session on a server."""

    def __init__(self, server: Server, session: Session, rank: int) -> None:
        self._server, self._session, self._rank = server, session, rank
        self._part, self._hall = server.part, server.hall
        self._spare: Tensor | None = None
        self._answers: dict[int, Callable[[Message], object]] = {
            Op.STEP: self._step,
            Op.AGAIN: self._take_push,
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
        push = self._take_push(message)
        with self._hall.changed:
            self._hall.wait_for(lambda: self._hall.rules.may_go_on(push, version=self._hall.version or 0))
            weights = self._weights_for(push)
            numbers = (self._hall.version or 0, *self._result_of(push), self._hall.stop_at)
        self._session.tell(Op.STEP, *numbers)
        self._send_buckets(weights)

    def _take_push(self, message: Message) -> Push:
        step, base = int(message.numbers[0]), int(message.numbers[1])
        vector = torch.empty_like(self._part.vector) if self._spare is None else self._spare
        self._spare = None
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
        return push

    def _result_of(self, push: Push) -> tuple[float, float, bool]:
        """Norm, loss and whether there was an update; of a step still to be finished, what is known of it."""
        result = self._hall.result
        if push.applied:
            return result.norm, result.loss, result.updated
        return result.norm, push.loss * push.step_targets / max(push.targets, 1.0), True

    def _weights_for(self, push: Push) -> Tensor:
        """What answers a push: a copy, because the next update may be made while it is on its way."""
        if push.answer is not None:
            return push.answer
        self._spare = push.vector if push.applied else None
        return self._part.vector.clone() if self._spare is None else self._spare.copy_(self._part.vector)

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
            self._server.ledger.whole()
        self._session.tell(Op.PLACE)

    def _meet(self, message: Message) -> None:
        step, count, length = map(int, message.numbers[:3])
        vector = self._session.receive(torch.empty(length, dtype=torch.float64))
        total = self._hall.meet(self._rank, (step, count), vector)
        self._server.ledger.keep()
        self._session.send(total)

    def _tally(self, message: Message) -> None:
        vote, length = bool(message.numbers[0]), int(message.numbers[1])
        vector = self._session.receive(torch.empty(length, dtype=torch.float64))
        total = self._hall.tally(self._rank, vector, vote=vote)
        self._server.ledger.keep()
        self._session.tell(Op.TALLY, self._hall.stop_at)
        self._session.send(total)

    def _join(self, message: Message) -> None:
        told = int(message.numbers[0])
        begin = self._hall.join(self._rank, None if told < 0 else told)
        self._server.ledger.keep()
        self._session.tell(Op.JOIN, begin)

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
        self._move_buckets(vector, self._session.start_receive, PUSH)

    def _send_buckets(self, vector: Tensor) -> None:
        self._move_buckets(vector, self._session.start_send, PULL)

    def _move_buckets(self, vector: Tensor, start: Callable[[Tensor, int], Pending], tag: int) -> None:
        """This server's run of every bucket at once; returns when all are through."""
        places = [bucket.places[self._part.server] for bucket in self._part.layout.buckets]
        works = [
            start(vector[place], tag + 2 * number)
            for number, place in enumerate(places)
            if place.start < place.stop
        ]
        for work in works:
            work.wait()
