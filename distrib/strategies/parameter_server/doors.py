"""How workers and servers find each other: a process group per pair, opened with the job's token.

Both sides show that they know it before anything else is sent. As everywhere, a job that nobody gave a
token to trusts its network (`distrib.sealed`).
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from distrib.errors import LaunchError
from distrib.rendezvous import pair
from distrib.strategies.parameter_server.session import Session

if TYPE_CHECKING:
    from distrib.world import World


class Doors:
    """Opens sessions. The ranks below ``num_workers`` work, the others serve.

    Args:
        limit: seconds that a peer may be silent.
    """

    def __init__(self, world: World, *, num_workers: int, limit: float) -> None:
        self._world, self._num_workers, self._limit = world, num_workers, limit

    def open(self, other: int, *, number: int = 0, since: int = 0, patience: float | None = None) -> Session:
        """A session with rank ``other``, which opens it too.

        Args:
            number: of a worker's restarts, to tell its sessions apart.
            since: the term since which the server holds its part.
            patience: how many times the limit the other may take to come; None: it may be starting still.

        Raises `LaunchError` where the other does not come, or does not show the token of this job.
        """
        low, high = sorted((self._world.rank, other))
        name = f"{low}-{high}-{number}" + (f"-{since}" if since else "")
        side = int(self._world.rank == high)
        peer = f"{'worker' if other < self._num_workers else 'server'} rank {other}"
        session = Session(
            pair(self._world, name, rank=side, peer=peer, limit=patience and patience * self._limit),
            rank=side,
            peer=peer,
            limit=self._limit,
        )
        ours, theirs = self._proof(name, side), self._proof(name, 1 - side)
        session.send(torch.frombuffer(bytearray(ours), dtype=torch.uint8))
        shown = session.receive(torch.zeros(len(theirs), dtype=torch.uint8))
        if not hmac.compare_digest(bytes(shown.tolist()), theirs):
            with suppress(LaunchError):  # or our end would take with it what the other has not read yet
                session.confirm()
                session.confirmed()
            raise LaunchError(f"who says to be {peer} does not know this job's token")
        return session

    def _proof(self, name: str, side: int) -> bytes:
        return hmac.digest(self._world.token.encode(), f"{name}/{side}".encode(), "sha256")

    def knock(self) -> None:
        """Asks to be let in by who holds the parts now: this rank was started again."""
        self._world.store.set(f"knock/{self._world.rank}", str(self._world.rejoin))
        self._world.store.add("knocks", 1)

    def knocks(self) -> int:
        """How often anybody has asked."""
        return int(self._world.store.add("knocks", 0))

    def knocked(self, rank: int) -> int:
        """The number of a rank's latest restart that asks for sessions; 0: none."""
        key = f"knock/{rank}"
        return int(self._world.store.get(key)) if self._world.store.check([key]) else 0
