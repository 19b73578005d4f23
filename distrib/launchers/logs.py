"""Every rank's log, and rank 0's on screen."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from distrib.launchers.base import Command
from distrib.launchers.failure import FAILED


def open_log(folder: Path, command: Command, *, size: int) -> tuple[Path, int]:
    """Opens the command's log to append, with a line that says what starts; returns path and descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{command.log_name}.log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    what = shlex.join(command.argv)
    os.write(fd, f"# {now} rank {command.rank} of {size} on {command.host}: {what}\n".encode())
    return path, fd


@contextlib.contextmanager
def kept_in_log(folder: Path, *, rank: int) -> Iterator[None]:
    """Keeps what this rank writes to standard error in its log too, and last what ended it.

    For a rank that somebody else's launcher started, whose output goes where that launcher says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.log").open("a", buffering=1, encoding="utf-8") as log:
        log.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}: {shlex.join(sys.argv)}\n")
        with contextlib.redirect_stderr(_Both(sys.stderr, log)):
            try:
                yield
            except BaseException:
                log.write(f"{FAILED.format(rank=rank)}\n{traceback.format_exc()}")
                raise


@contextlib.contextmanager
def as_a_guest(folder: Path, *, rank: int) -> Iterator[None]:
    """For a rank that another program starts for us: its own log, and no terminal.

    Open MPI gives ranks a terminal of its own making, whatever its output goes to.
    """
    with kept_in_log(folder, rank=rank), contextlib.redirect_stdout(_NoTerminal(sys.stdout)):
        yield


class _NoTerminal(io.TextIOBase):
    """Writes to what looks like a terminal and is none."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen

    def write(self, text: str) -> int:
        written = self._screen.write(text)
        self._screen.flush()
        return written

    def isatty(self) -> bool:
        return False


class _Both(io.TextIOBase):
    """Writes to the screen and to a log."""

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self._screen, self._log = screen, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._screen.write(text)

    def flush(self) -> None:
        self._screen.flush()

    def fileno(self) -> int:
        return self._screen.fileno()

    def isatty(self) -> bool:
        return self._screen.isatty()


class Mirror:
    """What a rank writes: into its log at once, and on screen but for the last words.

    Those come last on screen, when every process has ended (`Death.describe`). The log itself cannot be
    followed instead, because the rank writes more to it: what it shows on the terminal.
    """

    def __init__(self, log: int, *, rank: int = 0, label: str = "", screen: TextIO | None = None) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._log = os.dup(log)
        self._screen = screen or sys.stderr
        self._label = label
        self._mark = FAILED.format(rank=rank).encode()
        self._pending = b""

    def update(self) -> None:
        """Shows the whole lines that are new."""
        self._pending += self._read()
        if self._mark in self._pending:
            return
        lines, newline, self._pending = self._pending.rpartition(b"\n")
        self._show(lines + newline)

    def close(self) -> None:
        """Shows the rest; last words stay for `Death.describe`."""
        self.update()
        self._show(self._pending.partition(self._mark)[0])
        os.close(self._reading)
        os.close(self._log)

    def _read(self) -> bytes:
        new = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reading, 65536):
                os.write(self._log, part)
                new += part
        return new

    def _show(self, text: bytes) -> None:
        if text:
            lines = text.decode(errors="replace").splitlines(keepends=True)
            self._screen.write("".join(f"{self._label}{line}" for line in lines))
            self._screen.flush()
