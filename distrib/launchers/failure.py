"""Which rank failed first, and what it left in its log."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import PeerLostError

PEER_LOST = PeerLostError.exit_code
"""The exit code of a rank that only failed because another one had."""

FAILED = "--- rank {rank} failed ---"
"""A rank writes this line before its last words, so that the launcher can show them last."""

LOST = "(it lost another rank, whose own failure is the cause)"
"""Comes next where it is so."""

TAIL_LINES = 30
"""Shown of a log without last words: the rank was killed, or crashed below Python."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """A rank that ended before the job was over."""

    rank: int
    code: int
    """Exit code, or minus the number of the signal that killed it."""
    seen_at: float
    log: Path
    log_start: int = 0
    """Where this run's part of the log begins."""

    @property
    def exit_code(self) -> int:
        """What the job exits with: 128 + signal as in a shell, or the rank's own code."""
        return 128 - self.code if self.code < 0 else self.code

    @property
    def how(self) -> str:
        """What happened, after the word for who."""
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"failed with exit code {self.code}"

    def describe(self) -> str:
        """Where the log is, what happened, and last the rank's own last words."""
        return f"log of rank {self.rank}: {self.log}\nrank {self.rank} {self.how}:\n{self._last_words()}"

    def _last_words(self) -> str:
        words = last_words(self.log, start=self.log_start, rank=self.rank)
        if words is not None:
            return words
        words = "\n".join(_since(self.log, self.log_start).splitlines()[-TAIL_LINES:])
        if self.code == -signal.SIGKILL:
            words += (
                "\nSIGKILL leaves no last words; its sender is often the kernel, short of memory (see dmesg)"
            )
        return words.strip()


def first_cause(deaths: Iterable[Death]) -> Death:
    """The death that brought the others about.

    A rank that says it lost a peer is never the cause while another one is known. Of those seen at
    the same time, one killed by a signal could not have been waiting for an error message.
    """
    return min(
        deaths, key=lambda death: (death.code == PEER_LOST, death.seen_at, death.code >= 0, death.rank)
    )


def cause_in(logs: Path, *, starts: Mapping[Path, int]) -> tuple[int, str] | None:
    """The rank that failed first by its own words, and those; None where no rank has left any.

    For ranks that somebody else's launcher started, which says of them no more than an exit code.

    Args:
        logs: the folder with one log a rank.
        starts: where this run's part of each begins; 0 for one that is not in it.
    """
    found = []
    for log in logs.glob("rank-*.log"):
        rank = int(log.stem.rpartition("-")[2])
        words = last_words(log, start=starts.get(log, 0), rank=rank)
        if words is not None:
            found.append((words.startswith(LOST), log.stat().st_mtime, rank, words))
    if not found or min(found)[0]:
        return None
    return min(found)[2:]


def last_words(log: Path, *, start: int, rank: int) -> str | None:
    """What a rank wrote after it said that it failed; None where it did not."""
    _, mark, words = _since(log, start).rpartition(FAILED.format(rank=rank) + "\n")
    return words.strip() if mark else None


def _since(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
