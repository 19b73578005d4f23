"""Who holds a server's part: one rank at a time, by a claim at the job's store that only one can win.

A server that lost its backup and a backup that lost its server cannot know which of them is cut off. Each
must win the next term before it makes a further update, so that never two do: no split brain. Rank 0
serves the store, and a job does not go on without rank 0 anyway.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distrib.world import World

TAKE_OVER_SECONDS = 10.0
"""How long a worker that lost a server waits for its backup, which finds out before the worker does."""
LOOK_SECONDS = 0.02

NOBODY = -1


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A rank that holds a part, and the term since which it does; 0: from the start."""

    rank: int
    since: int = 0


class Terms:
    """The terms of one part.

    Args:
        part: its number, from 0.
        first: the rank that holds it in term 0.
    """

    def __init__(self, world: World, *, part: int, first: int) -> None:
        self._store, self._part = world.store, part
        self._holder, self._term = Holder(rank=first), 0

    def holder(self) -> Holder:
        """Who holds the part now; `NOBODY` where it was given up."""
        while self._store.check([self._key(self._term + 1)]):
            self._term += 1
            rank = int(self._store.get(self._key(self._term)))
            if rank != self._holder.rank:
                self._holder = Holder(rank=rank, since=self._term)
        return self._holder

    def claim(self, rank: int) -> Holder | None:
        """Tries to make the next term ``rank``'s; None where another one was faster.

        It is the next after the last that this object has seen: who has overlooked one has lost. A server
        therefore never asks its own for the `holder` once it serves.
        """
        key = self._key(self._term + 1)
        if self._store.add(f"{key}/claims", 1) != 1:
            return None
        self._store.set(key, str(rank))
        self._term += 1
        if rank != self._holder.rank:
            self._holder = Holder(rank=rank, since=self._term)
        return self._holder

    def successor(self, of: Holder) -> Holder | None:
        """Who has taken over from a holder that was lost; None where nobody does in time."""
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        while (now := self.holder()) == of:
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_SECONDS)
        return None if now.rank == NOBODY else now

    def _key(self, term: int) -> str:
        return f"holds/{self._part}/{term}"
