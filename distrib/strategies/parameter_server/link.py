"""A worker's, or another server's, way to whoever holds one server's part."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.session import Session
from distrib.strategies.parameter_server.terms import Holder, Terms

T = TypeVar("T")

ANSWER_PATIENCE = 2.0
"""How many times longer than ever the answer of who took over may take: another worker, which this one waits
for, may have found out about the loss a whole time limit later, where the lost server fell silent."""


class Link:
    """A session with a server, and after its loss one with the rank that has taken over.

    Args:
        number: of this worker's restarts; of a server, the term in which it came to hold its part.
        patience: how many times the limit the holder may take to come first; None: it may be starting still.
        terms: of the server's part; None: it has no backup, and its loss is raised at once.
    """

    def __init__(
        self, doors: Doors, rank: int, *, number: int, terms: Terms | None, patience: float | None = None
    ) -> None:
        self._doors, self._number, self._terms = doors, number, terms
        self._holder = Holder(rank=rank) if terms is None else terms.holder()
        try:
            self.session = self._open(self._holder, patience=patience)
        except LaunchError as error:
            self.session = self._open_next(error)
        self.error: LaunchError | None = None
        self.is_new = False
        """The session was opened after the exchange under way had begun with the lost one."""
        self.catch_up: Callable[[Session], None] = lambda session: None
        """Tells a new holder what the old one may not have passed on."""

    @property
    def has_backup(self) -> bool:
        """Whether another rank may take over."""
        return self._terms is not None

    def attempt(self, talk: Callable[[Session], T]) -> T | None:
        """One part of an exchange. A loss is kept until `exchange`, which comes last; or raised at once."""
        if self.error is not None:
            return None
        try:
            return talk(self.session)
        except LaunchError as error:
            if self._terms is None:
                raise
            self.error = error
            return None

    def exchange(self, talk: Callable[[Session], T], *, again: Callable[[Session], None] | None = None) -> T:
        """What ``talk`` returns, which is repeated with the next holder where this one is lost.

        Args:
            again: what has been said already, to be said anew before.

        Raises the loss where nobody takes over.
        """
        while True:
            result = self.attempt(talk)
            if self.error is None:
                return result  # type: ignore[return-value]  # None too may be what ``talk`` returns
            self._renew(self.error)
            self.attempt(self.catch_up)
            if again is not None:
                self.attempt(again)

    def _renew(self, error: LaunchError) -> None:
        old, self.session = self.session, self._open_next(error)
        self.session.sent, self.session.received = old.sent, old.received
        self.error, self.is_new = None, True

    def _open_next(self, error: LaunchError) -> Session:
        self._holder = successor(self._terms, self._holder, error=error)
        session = self._open(self._holder, patience=1.0)
        session.limit *= ANSWER_PATIENCE
        return session

    def _open(self, holder: Holder, *, patience: float | None) -> Session:
        return self._doors.open(holder.rank, number=self._number, since=holder.since, patience=patience)


def successor(terms: Terms | None, holder: Holder, *, error: LaunchError) -> Holder:
    """Who has taken over from a holder that was lost by ``error``, which is raised where nobody does."""
    found = None if terms is None else terms.successor(holder)
    if found is None:
        raise error
    print(f"notice: {error}; rank {found.rank} has taken over", file=sys.stderr, flush=True)
    return found


def exchange_all(
    links: Sequence[Link], talk: Callable[[Session], T], *, again: Callable[[int, Session], None]
) -> list[T]:
    """What ``talk`` returns on each link; ``again``, with the link's number, as of `Link.exchange`.

    Servers wait for each other. Where one may be lost and its backup wants all said again, no other's answer
    is waited for before.
    """
    calls = [partial(link.exchange, talk, again=partial(again, number)) for number, link in enumerate(links)]
    if len(links) == 1 or not any(link.has_backup for link in links):
        return [call() for call in calls]
    return at_once(calls)


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What the calls return, each made in a thread of its own. Raises what one of them raises first.

    Daemons, as what the others wait for may never come then.
    """
    done: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()

    def run(number: int) -> None:
        try:
            done.put((number, calls[number]()))
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            done.put((number, error))

    for number in range(len(calls)):
        threading.Thread(target=run, args=(number,), name=f"answer-{number}", daemon=True).start()
    found: dict[int, T] = {}
    while len(found) < len(calls):
        number, result = done.get()
        if isinstance(result, BaseException):
            raise result
        found[number] = result
    return [found[number] for number in range(len(calls))]
