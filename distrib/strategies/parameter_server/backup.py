"""A rank that keeps a server's part a second time, and serves when that server is lost."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch
from torch.distributed import DistError

from distrib.errors import LaunchError, PeerLostError
from distrib.strategies.parameter_server.server import Server
from distrib.strategies.parameter_server.session import Message, Note, Session, as_bytes
from distrib.strategies.parameter_server.terms import NOBODY, Terms


class Backup:
    """Follows a server's `Ledger` with a server of its own, which is the same to the bit.

    Args:
        server: what is to serve; it hears nobody before.
        session: with the server that holds the part.
        rank: of this process.
    """

    def __init__(self, server: Server, session: Session, terms: Terms, *, rank: int) -> None:
        self._server, self._session, self._terms, self._rank = server, session, terms, rank
        self._part, self._hall = server.part, server.hall

    def serve(self) -> None:
        """Returns when all workers have left. Raises what made it impossible to go on."""
        last_words = self._follow_to_the_end()
        if last_words is None:
            self._server.serve()
        elif last_words.text is not None:
            raise PeerLostError(last_words.text)

    def _follow_to_the_end(self) -> Message | None:
        """What the server says when it ends; None: it was lost, and this rank has won its part."""
        try:
            while (message := self._session.hear()).op != Note.END:
                self._follow(message)
        except LaunchError as error:
            self._take_over(error)
            return None
        with suppress(LaunchError):
            self._session.confirm()
        return message

    def _follow(self, message: Message) -> None:
        """Acknowledges what was told whole, then does the same. What breaks off has not happened."""
        if message.op == Note.UPDATE:
            self._update(message)
        elif message.op == Note.WHOLE:
            self._replace(message)
        else:
            self._acknowledge(message)

    def _update(self, message: Message) -> None:
        norm, lr = message.numbers[:2]
        vector = self._session.receive(torch.empty_like(self._part.vector))
        self._acknowledge(self._session.hear())
        touched = self._part.pieces.keys() if message.text is None else message.text
        self._server.update.repeat(vector, touched=frozenset(touched), norm=norm, lr=lr)

    def _replace(self, message: Message) -> None:
        vector = self._session.receive(torch.empty_like(self._part.vector))
        slots = {}
        for name, of_parameter in message.text.items():
            for slot, (is_cut, dtype) in of_parameter.items():
                shape = self._part.parameters[name].shape if is_cut else ()
                value = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                self._session.receive(as_bytes(value))
                slots[name, slot] = value
        self._acknowledge(self._session.hear())
        with torch.no_grad():
            self._part.vector.copy_(vector)
        for (name, slot), value in slots.items():
            self._part.put_slot(name, slot, value)
        self._part.finish_loading()

    def _acknowledge(self, message: Message) -> None:
        totals = {}
        while message.op == Note.TOTAL:
            step, count, length = map(int, message.numbers[:3])
            totals[step, count] = self._session.receive(torch.empty(length, dtype=torch.float64))
            message = self._session.hear()
        if message.op != Note.STATE:
            raise PeerLostError(f"lost {self._session.peer}: it ended in the middle of an update")
        self._hall.restore(message.text, totals=totals)
        with suppress(LaunchError):  # it is lost, and what it told whole holds all the same
            self._session.tell(Note.STATE)

    def _take_over(self, lost: LaunchError) -> None:
        try:
            holder = self._terms.claim(self._rank)
        except DistError as error:
            raise lost from error  # rank 0 has ended, and the job with it
        if holder is None:
            alone = self._terms.holder().rank != NOBODY
            raise LaunchError(f"{lost}; it goes on without rank {self._rank}") if alone else lost
        done = self._hall.version or 0
        words = f"rank {self._rank} serves in its place from update {done}, none is lost"
        print(f"notice: {lost}; {words}", file=sys.stderr, flush=True)
        self._server.since = holder.since
