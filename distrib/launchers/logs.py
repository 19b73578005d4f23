"""Every rank's log, and rank 0's on screen."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

from distrib.launchers.base import Command
from distrib.launchers.failure import FAILED


def open_log(folder: Path, command: Command, *, size: int) -> tuple[Path, int]:
    """Opens ``rank-<r>.log`` to append, with a line that says what starts; returns path and descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{command.rank}.log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    what = shlex.join(command.argv)
    os.write(fd, f"# {now} rank {command.rank} of {size} on {command.host}: {what}\n".encode())
    return path, fd


class Mirror:
    """Copies what is appended to a log to the screen, but for the rank's last words.

    Those come last on screen, when every process has ended (`Death.describe`).
    """

    def __init__(self, log: Path, *, rank: int, screen: TextIO | None = None) -> None:
        self._log = log.open("rb")
        self._log.seek(0, os.SEEK_END)
        self._screen = screen or sys.stderr
        self._mark = FAILED.format(rank=rank).encode()
        self._pending = b""

    def update(self) -> None:
        """Shows the whole lines that are new."""
        self._pending += self._log.read()
        if self._mark in self._pending:
            return
        lines, newline, self._pending = self._pending.rpartition(b"\n")
        if newline:
            self._screen.write((lines + newline).decode(errors="replace"))
            self._screen.flush()

    def close(self) -> None:
        """Shows the rest; last words stay for `Death.describe`."""
        self.update()
        rest, _, _ = self._pending.partition(self._mark)
        self._screen.write(rest.decode(errors="replace"))
        self._screen.flush()
        self._log.close()
