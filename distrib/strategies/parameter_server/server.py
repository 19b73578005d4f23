"""A rank that serves: one thread hears each worker, the main thread makes the updates."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

from torch import Tensor
from torch.distributed import DistError

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.agreement import Agreement
from distrib.strategies.parameter_server.desk import Desk
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.hall import EndedError, Hall
from distrib.strategies.parameter_server.ledger import Ledger
from distrib.strategies.parameter_server.packing import Packing
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Push
from distrib.strategies.parameter_server.session import Op
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
        self,
        part: Part,
        hall: Hall,
        *,
        doors: Doors,
        update: Update,
        agreement: Agreement,
        ledger: Ledger,
        partner: int | None,
        packing: Packing | None,
    ) -> None:
        self.part, self.hall, self.facts, self.ledger = part, hall, update.facts, ledger
        self.packing = packing
        self.since = 0
        """The term in which this rank came to hold the part; 0: from the start."""
        self._doors, self.update, self._agreement, self._partner = doors, update, agreement, partner
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
            self._agreement.begin(self.since)
            while not self.hall.is_empty():
                if pushes := self._next():
                    self._update(pushes)
                self._agreement.beat()
                self._look_for_restarts()
        except EndedError:
            assert self.hall.failure is not None
            self.ledger.end(self.hall.failure)
            raise self.hall.failure from None
        except BaseException as error:
            self.hall.fail(error)
            self.ledger.end(error)
            raise
        self._agreement.end()
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
            Desk(self, session, rank=rank, life=number).serve()
            with self.hall.told():  # the server ends with the last one, who must be answered before
                self.hall.leave(rank)
                self.ledger.keep()
                with suppress(LaunchError):  # it has left, whether it hears this or not
                    session.tell(Op.LEAVE)
                    session.confirmed()
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
        self.update(pushes)
        with self.hall.changed:
            self.facts.busy += time.perf_counter() - began

    def names(self, mask: Tensor) -> frozenset[str]:
        """The parameters a worker's mask names."""
        return frozenset(name for name, on in zip(self._names, mask.tolist(), strict=True) if on)

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return len(self._names)
