"""A server tells its backup what it does before any worker hears of it, so that nothing is lost with it.

The backup makes the same updates from the same sums, to the bit. A worker is answered when the backup has
acknowledged (chain replication of van Renesse and Schneider 2004, OSDI, with a chain of two).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor
from torch.distributed import DistError

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.hall import EndedError, Hall, Meet
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.session import Note, Session, as_bytes
from distrib.strategies.parameter_server.terms import NOBODY, Terms

T = TypeVar("T")


class Ledger:
    """One server's way to its backup. Without one, nothing is told and nothing waited for.

    Args:
        rank: of the server.
        terms: None where there never is a backup.
    """

    def __init__(self, part: Part, hall: Hall, *, rank: int, terms: Terms | None) -> None:
        self._part, self._hall, self._rank, self._terms = part, hall, rank, terms
        self._session: Session | None = None
        self._told: Collection[Meet] = ()
        """The meetings whose totals the backup has."""
        self._turn = threading.Lock()
        self._ended = threading.Event()

    @property
    def is_vacant(self) -> bool:
        """Whether a backup could come."""
        return self._terms is not None and self._session is None

    def begin(self, session: Session, *, whole: bool) -> None:
        """Has a backup from now on; ``whole``: which must be told everything first."""
        with self._hall.changed:
            self._session, self._told = session, ()
            if whole:
                self.whole()
        threading.Thread(target=self._beat, args=(session,), name="beat", daemon=True).start()

    def keep(self) -> None:
        """Has the backup know what this server knows of its workers."""
        with self._hall.changed:
            self._tell(self._tell_state)

    def whole(self) -> None:
        """Has the backup hold what this server holds."""
        with self._hall.changed:
            self._tell(self._tell_whole)

    @contextmanager
    def update(
        self, vector: Tensor, *, touched: Collection[str] | None = None, norm: float = 0.0, lr: float = 0.0
    ) -> Iterator[None]:
        """Makes an update known that is made meanwhile; with the hall's state held.

        Args:
            vector: what `Update.repeat` makes it of, a gradient in most modes.
            touched: the parameters that have one; None: all.

        Where this raises, the update was not acknowledged, and nobody may hear of it.
        """

        def start(session: Session) -> None:
            names = self._part.pieces.keys()
            some = None if touched is None or names <= set(touched) else sorted(touched)
            session.tell(Note.UPDATE, norm, lr, text=some)
            session.send(vector.clone())  # clipping scales it in place

        self._tell(start)
        yield
        self._tell(self._tell_state)

    def end(self, reason: BaseException | None) -> None:
        """The server has ended: its backup ends too, and no worker waits for it."""
        self._ended.set()
        if self._terms is None:
            return
        try:
            if reason is not None:
                self._terms.claim(NOBODY)
            with self._turn:
                if self._session is not None:
                    self._session.tell(Note.END, text=None if reason is None else str(reason))
                    self._session.confirmed()  # or this process might end with it unsent
        except (LaunchError, DistError):
            pass  # there is nobody to be told
        self._session = None

    def _tell(self, what: Callable[[Session], T]) -> T | None:
        """Talks to the backup, one thread at a time, where there is one."""
        with self._turn:
            if self._session is None:
                return None
            try:
                return what(self._session)
            except LaunchError as error:
                self._session, lost = None, error
        self._go_on_alone(lost)
        return None

    def _go_on_alone(self, lost: LaunchError) -> None:
        assert self._terms is not None
        try:
            goes_on = self._terms.claim(self._rank) is not None
        except DistError:
            goes_on = False  # rank 0 has ended, and the job with it
        if not goes_on:
            self._hall.fail(LaunchError(f"{lost}; it has taken over from rank {self._rank} meanwhile"))
            raise EndedError
        print(f"notice: {lost}; rank {self._rank} goes on without a backup", file=sys.stderr, flush=True)

    def _tell_state(self, session: Session) -> None:
        totals = self._hall.totals
        for key in totals.keys() - self._told:
            session.tell(Note.TOTAL, *key, totals[key].numel())
            session.send(totals[key])
        session.tell(Note.STATE, text=self._hall.state())
        session.hear()
        self._told = totals.keys()

    def _tell_whole(self, session: Session) -> None:
        slots = self._part.slots()
        session.tell(Note.WHOLE, text=slots)
        session.send(self._part.vector)
        for name, of_parameter in slots.items():
            for slot in of_parameter:
                session.send(as_bytes(self._part.slot(name, slot)))
        self._tell_state(session)

    def _beat(self, session: Session) -> None:
        """Lets the backup know that this server lives, though its workers may be busy."""
        while not self._ended.wait(session.beat_seconds):
            with self._turn:
                if self._session is not session:
                    return
                try:
                    session.beat()
                except LaunchError:
                    return  # whoever tells it something next finds out
