"""One worker's session on a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distrib.strategies.parameter_server.rules import Push
from distrib.strategies.parameter_server.session import PULL, PUSH, Message, Op, Session, as_bytes

if TYPE_CHECKING:
    from distrib.strategies.parameter_server.server import Server


class Desk:
    """Answers one worker, in a thread of its own, from what the server's threads share.

    Args:
        life: the worker's, as of `Push`.
    """

    def __init__(self, server: Server, session: Session, *, rank: int, life: int) -> None:
        self._server, self._session, self._rank, self._life = server, session, rank, life
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
            self._hall.wait_while_telling(self._session, lambda: self._may_go_on(push))
            weights = self._weights_for(push) if self._hall.rules.sends_weights else None
            redone = self._hall.redone if push.redo else 0
            numbers = (self._hall.version or 0, *self._result_of(push), self._hall.stop_at, redone)
            decisions = self._hall.decisions_after(push.step - 1 if push.redo else push.step)
        self._session.tell(Op.STEP, *numbers, text=decisions or None)
        if weights is not None:
            self._send_buckets(weights)

    def _may_go_on(self, push: Push) -> bool:
        return push.redo or self._hall.rules.may_go_on(push, version=self._hall.version or 0)

    def _take_push(self, message: Message) -> Push:
        step, base, redone = map(int, message.numbers[:3])
        vector = torch.empty_like(self._part.vector) if self._spare is None else self._spare
        self._spare = None
        self._receive_gradient(vector)
        trailer = torch.empty(6 + self._server.num_parameters, dtype=torch.float64)
        loss, targets, step_targets, norm, seconds, waited = self._session.receive(trailer)[:6].tolist()
        self._session.confirm()
        push = Push(
            rank=self._rank,
            life=self._life,
            step=step,
            base=base,
            vector=vector,
            loss=loss,
            targets=targets,
            step_targets=step_targets,
            norm=norm,
            seconds=seconds,
            touched=self._server.names(trailer[6:]),
            redone=redone,
        )
        with self._hall.told():
            self._server.facts.waited(self._rank, waited)
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
        self._spare = push.vector if push.applied or push.redo else None
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
        total = self._hall.meet(self._rank, (step, count), vector, session=self._session)
        self._server.ledger.keep()
        self._session.tell(Op.MEET)
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
        step = None if told < 0 else told
        begin, redone, decisions = self._hall.join(self._rank, life=self._life, step=step)
        self._server.ledger.keep()
        self._session.tell(Op.JOIN, begin, redone, text=decisions or None)

    def _get(self, message: Message) -> None:
        with self._hall.changed:
            value = as_bytes(self._part.slot(*message.text)).clone()
        self._session.send(value)

    def _put(self, message: Message) -> None:
        name, slot, dtype, shape = message.text
        value = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        self._session.receive(as_bytes(value))
        self._part.put_slot(name, slot, value)
        self._session.confirm()

    def _facts(self, message: Message) -> None:
        with self._hall.changed:
            self._session.tell(Op.FACTS, text=self._server.facts.taken())

    def _receive_gradient(self, vector: Tensor) -> None:
        """A push's buckets, whichever way they are packed."""
        packing = self._server.packing
        if packing is None:
            self._receive_buckets(vector)
            return
        runs = self._runs(vector)
        inboxes = [packing.inbox(run) for run in runs]
        self._receive_all(inboxes)
        for inbox, run in zip(inboxes, runs, strict=True):
            packing.unpack(inbox, run)

    def _receive_buckets(self, vector: Tensor) -> None:
        self._receive_all(self._runs(vector))

    def _receive_all(self, runs: Sequence[Tensor]) -> None:
        start = self._session.start_receive
        arrivals = [start(run, PUSH + 2 * number) for number, run in enumerate(runs) if run.numel()]
        for arrival in arrivals:
            arrival.wait()

    def _send_buckets(self, vector: Tensor) -> None:
        for number, run in enumerate(self._runs(vector)):
            if run.numel():
                self._session.send(run, PULL + 2 * number)

    def _runs(self, vector: Tensor) -> list[Tensor]:
        """This server's run of every bucket."""
        return [vector[bucket.places[self._part.server]] for bucket in self._part.layout.buckets]
