"""A worker's way to whoever holds one server's part."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
        number: of this worker's restarts.
        terms: of the server's part; None: it has no backup, and its loss is raised at once.
    """

    def __init__(self, doors: Doors, rank: int, *, number: int, terms: Terms | None) -> None:
        self._doors, self._number, self._terms = doors, number, terms
        self._holder = Holder(rank=rank) if terms is None else terms.holder()
        self.session = doors.open(self._holder.rank, number=number, since=self._holder.since)
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
        found = None if self._terms is None else self._terms.successor(self._holder)
        if found is None:
            raise error
        print(f"notice: {error}; rank {found.rank} has taken over", file=sys.stderr, flush=True)
        old, self._holder = self.session, found
        self.session = self._doors.open(found.rank, number=self._number, since=found.since, patience=1.0)
        self.session.sent, self.session.received = old.sent, old.received
        self.session.limit *= ANSWER_PATIENCE
        self.error, self.is_new = None, True
