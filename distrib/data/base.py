"""Where records come from, before anything is tokenised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
"""One raw example. ``where`` (``file:line``) is always there, so that an error can name it; the
rest is the task's: ``text`` and ``label``, ``words`` and ``tags``, or ``text`` alone."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Raw records, split."""

    train: Sequence[Record]
    heldout: Sequence[Record]
    notes: Mapping[str, int | str]
    """What was counted on the way: ``duplicates_removed``, ``bad_rows_skipped``, ``split``."""


class Source(ABC):
    """A place that records are read from. One class per kind; arguments are its config's keys."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the content and of every argument that changes the records."""

    @abstractmethod
    def load(self) -> Corpus:
        """Reads, removes duplicates and splits. Raises `DataError` naming file and line."""
