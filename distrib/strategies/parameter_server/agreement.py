"""How the servers agree on a step: whose gradients are in it, and how long the gradient is.

The first part's server leads: the others ask it, it answers when all have asked. Servers may disagree about
a worker that died while it pushed, or that has pushed once more in its next life: what all of them have in
whole counts. Where that is too little, and the mode can have the step run again, the first one says so.

A server may be lost meanwhile, and its backup may not know yet of the step's update. So what was agreed is
known to the leader's backup before anybody hears of it, and the leader keeps it until all have asked for the
next step, which they do when their own backups have the update. Whoever takes over asks again.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.hall import Agreed, EndedError, Hall
from distrib.strategies.parameter_server.ledger import Ledger
from distrib.strategies.parameter_server.link import Link, successor
from distrib.strategies.parameter_server.rules import Sender
from distrib.strategies.parameter_server.session import Op, Session
from distrib.strategies.parameter_server.terms import Holder, Terms

SUCCESSOR_PATIENCE = 2.0
"""How many times longer than ever a server may take to come to one that took over: it finds out by itself."""

Count = Callable[[Collection[Sender]], Agreed]
"""What this server has to say of a step that is made of some workers' pushes."""


class Agreement(ABC):
    """One server's side, between `begin` and `end`."""

    def begin(self, since: int) -> None:  # noqa: B027 (a server alone has nothing to begin)
        """The server begins to serve; ``since``: the term in which this rank came to hold its part."""

    def beat(self) -> None:  # noqa: B027
        """Nothing is due yet; to be called more often than the time limit says."""

    def end(self) -> None:  # noqa: B027
        """The server has ended as it should."""

    @abstractmethod
    def settle(self, senders: Collection[Sender], *, at: tuple[int, int], count: Count) -> Agreed:
        """Whose pushes all servers have, and the squared norm of the whole of their sum.

        Args:
            senders: the workers whose pushes this server has.
            at: the pushes' step, and their `Push.redone`.
        """


class Leading(Agreement):
    """The first part's side, with a thread for each other server.

    Args:
        others: by part, the rank that holds it from the start and its terms.
    """

    def __init__(
        self, hall: Hall, ledger: Ledger, doors: Doors, *, others: Mapping[int, tuple[int, Terms | None]]
    ) -> None:
        self._hall, self._ledger, self._doors, self._others = hall, ledger, doors, others
        self._asked: dict[int, Agreed] = {}
        """By part, what is to be settled next; taken out when it is answered."""
        self._common: Collection[Sender] = ()
        """Whose pushes all servers have, where they have to count anew."""
        self._threads: list[threading.Thread] = []

    def begin(self, since: int) -> None:
        for part in self._others:
            serve = partial(self._serve, part, since)
            self._threads.append(threading.Thread(target=serve, name=f"part-{part}", daemon=True))
            self._threads[-1].start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join()  # a thread that waits in gloo when Python ends takes the process down with SIGABRT

    def settle(self, senders: Collection[Sender], *, at: tuple[int, int], count: Count) -> Agreed:
        while self._hall.agreed.at != at:
            ours = count(senders)
            with self._hall.told():
                self._hall.wait_for(lambda: self._asked.keys() == self._others.keys())
                senders = self._compare([ours, *(self._asked[part] for part in sorted(self._asked))])
                self._asked = {}
        return self._hall.agreed

    def _compare(self, counts: list[Agreed]) -> Collection[Sender]:
        assert len({each.at for each in counts}) == 1, "nobody is a step ahead of what was agreed"
        common = sorted(set(counts[0].senders).intersection(*(each.senders for each in counts)))
        self._common = common
        if all(each.senders == common for each in counts):
            square = sum(each.square for each in counts)
            self._hall.agreed = replace(counts[0], square=square)
            if self._others:
                self._ledger.keep()
        return common

    def _serve(self, part: int, since: int) -> None:
        try:
            self._answer_holders(part, since)
        except EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self._hall.fail(error)

    def _answer_holders(self, part: int, since: int) -> None:
        """Answers whoever holds a part, until it leaves. Raises the loss where nobody takes over."""
        rank, terms = self._others[part]
        holder = Holder(rank=rank) if terms is None else terms.holder()
        patience = SUCCESSOR_PATIENCE if since else None
        while True:
            try:
                session = self._doors.open(holder.rank, number=holder.since, since=since, patience=patience)
                return self._answer_all(part, session)
            except LaunchError as error:
                holder, patience = successor(terms, holder, error=error), SUCCESSOR_PATIENCE

    def _answer_all(self, part: int, session: Session) -> None:
        while (message := session.hear()).op != Op.LEAVE:
            step, redone, square = message.numbers[:3]
            senders = senders_of(session.receive(self._lives()))
            asked = Agreed(step=int(step), redone=int(redone), senders=senders, square=square)
            answer = self._answer(part, asked, session)
            if answer is None:
                session.tell(Op.SETTLE, False)
            else:
                session.tell(Op.SETTLE, True, answer.square, answer.redo)
            session.send(self._lives(self._common if answer is None else answer.senders))
        session.confirm()

    def _answer(self, part: int, asked: Agreed, session: Session) -> Agreed | None:
        """What was agreed; None: to be counted anew over those whom all have in common."""
        with self._hall.told():
            if asked.at > self._hall.agreed.at:
                self._asked[part] = asked
                self._hall.changed.notify_all()
                self._hall.wait_while_telling(session, lambda: part not in self._asked)
            assert asked.at >= self._hall.agreed.at, "the others' backups have what was agreed before"
            return self._hall.agreed if asked.at == self._hall.agreed.at else None

    def _lives(self, senders: Collection[Sender] = ()) -> Tensor:
        return lives_of(senders, num_workers=self._hall.num_workers)


class Following(Agreement):
    """Every other part's side.

    Args:
        connect: opens the way to the leader, by the term in which this rank came to hold its part.
    """

    def __init__(self, connect: Callable[[int], Link], *, num_workers: int) -> None:
        self._connect, self._num_workers = connect, num_workers
        self._link: Link | None = None
        self._beat_at = 0.0

    def begin(self, since: int) -> None:
        try:
            self._link = self._connect(since)
        except LaunchError as error:
            if not since:
                raise
            # Where the workers have left the leader already, they have no step to be settled either.
            print(f"notice: {error}", file=sys.stderr, flush=True)

    def beat(self) -> None:
        now = time.monotonic()
        if self._link is not None and now > self._beat_at + self._link.session.beat_seconds:
            self._beat_at = now
            with suppress(LaunchError):  # it is asked next if there is a next step
                self._link.session.beat()

    def end(self) -> None:
        if self._link is not None:
            with suppress(LaunchError):  # it may have ended before
                self._link.session.tell(Op.LEAVE)
                self._link.session.confirmed()

    def settle(self, senders: Collection[Sender], *, at: tuple[int, int], count: Count) -> Agreed:
        if self._link is None:
            raise LaunchError("the first part's server does not answer")
        while True:
            is_settled, answer = self._link.exchange(partial(self._ask, count(senders)))
            if is_settled:
                return answer
            senders = answer.senders

    def _ask(self, ours: Agreed, session: Session) -> tuple[bool, Agreed]:
        session.tell(Op.SETTLE, *ours.at, ours.square)
        session.send(lives_of(ours.senders, num_workers=self._num_workers))
        is_settled, square, redo = session.hear().numbers[:3]
        senders = senders_of(session.receive(lives_of((), num_workers=self._num_workers)))
        return bool(is_settled), replace(ours, senders=senders, square=square, redo=bool(redo))


def lives_of(senders: Collection[Sender], *, num_workers: int) -> Tensor:
    """For each worker the number of its life among ``senders``, from 1; 0: it is not one of them."""
    lives = torch.zeros(num_workers, dtype=torch.int64)
    for rank, life in senders:
        lives[rank] = life + 1
    return lives


def senders_of(lives: Tensor) -> list[Sender]:
    """The opposite."""
    return [(rank, life - 1) for rank, life in enumerate(lives.tolist()) if life]
