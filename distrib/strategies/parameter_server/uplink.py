"""What a worker sends to the servers: one message per bucket and server, then what completes the push."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.link import Link
from distrib.strategies.parameter_server.session import BODY, PUSH, Op, Session
from distrib.strategies.parameter_server.spent import Spent


@dataclass(frozen=True, kw_only=True)
class SentPush:
    """What a worker has sent, whole, should it have to send it again."""

    step: int
    redone: int
    bases: Sequence[int]
    """The version of the weights it was computed from, by server."""
    messages: Mapping[int, Sequence[Tensor]]
    """By bucket one for each server, as they went."""
    trailer: Tensor


class Uplink:
    """Sends pushes, and keeps those that a server's backup may not know of.

    Args:
        links: one per server, in order.
        settle: waits until all weights that were asked for are there.
    """

    def __init__(
        self, layout: Layout, *, links: Sequence[Link], spent: Spent, settle: Callable[[], None]
    ) -> None:
        self._names = [name for bucket in layout.buckets for name in bucket.starts]
        self._links, self._spent, self._settle = links, spent, settle
        self._op: int | None = None
        """Not announced yet."""
        self._step = self._redone = 0
        self._bases: Sequence[int] = ()
        self._messages: dict[int, Sequence[Tensor]] = {}
        self._kept: list[SentPush] = []
        self.keeps = any(link.has_backup for link in links)
        """Whether messages may be asked for again, and must not change before the push is answered."""
        for server, link in enumerate(links):
            link.catch_up = partial(self._repeat_answered, server)

    def begin(self, op: int, *, step: int, bases: Sequence[int], redone: int = 0) -> None:
        """Begins a push, or another ``op`` that buckets follow; it may take the whole of backward.

        Args:
            bases: the version of the weights held, by server.
            redone: as of `Push`.
        """
        self._messages, self._op, self._step, self._redone, self._bases = {}, op, step, redone, bases

    def send(self, number: int, messages: Sequence[Tensor]) -> None:
        """Starts a bucket's messages, one for each server; those that are empty do not go."""
        self._announce()
        self._messages[number] = messages
        for link, message in zip(self._links, messages, strict=True):
            if message.numel():
                self._start(link, message, PUSH + 2 * number)

    def _announce(self) -> None:
        """Says what comes, before the first bucket: by this a server knows that its weights have come."""
        if self._op is None:
            return
        op, self._op = self._op, None
        self._settle()  # of what forward does not use
        for link, base in zip(self._links, self._bases, strict=True):
            link.is_new = False
            header = (op, self._step, base, self._redone)
            link.attempt(lambda session: session.tell(*header))  # noqa: B023 (called at once)

    def finish(self, *numbers: float, touched: Collection[str]) -> SentPush:
        """Completes the push by loss, targets, the step's targets, norm; and by who has a gradient."""
        mask = [float(name in touched) for name in self._names]
        times = [self._spent.microbatch, self._spent.tell()]
        trailer = torch.tensor([*numbers, *times, *mask], dtype=torch.float64)
        for link in self._links:
            self._start(link, trailer)
        with self._spent.on("push"):
            for link in self._links:
                if not link.is_new:
                    link.attempt(lambda session: session.confirmed())
        return SentPush(
            step=self._step,
            redone=self._redone,
            bases=self._bases,
            messages=self._messages,
            trailer=trailer,
        )

    def _start(self, link: Link, tensor: Tensor, tag: int = BODY) -> None:
        if link.is_new:
            return  # the push is sent again whole
        link.attempt(lambda session: session.send(tensor, tag))

    def keep(self, push: SentPush, *, since: int) -> None:
        """Keeps what was answered but is in no update yet: steps from ``since`` on."""
        self._kept = [kept for kept in self._kept if kept.step >= since]
        if push.step >= since and self.keeps:
            copies = {number: [m.clone() for m in messages] for number, messages in push.messages.items()}
            self._kept.append(replace(push, messages=copies))

    def _repeat_answered(self, server: int, session: Session) -> None:
        for push in self._kept:
            self.repeat(push, server, session, op=Op.AGAIN)

    def repeat(self, push: SentPush, server: int, session: Session, *, op: Op = Op.STEP) -> None:
        """Sends a push anew to whoever has taken over from a server."""
        session.tell(op, push.step, push.bases[server], push.redone)
        for number, messages in push.messages.items():
            if messages[server].numel():
                session.send(messages[server], PUSH + 2 * number)
        session.send(push.trailer)
        session.confirmed()
