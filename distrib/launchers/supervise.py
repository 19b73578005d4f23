"""Watches over the ranks on this host: the first failure ends the job, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distrib.launchers.base import Command
from distrib.launchers.failure import PEER_LOST, Death, first_cause
from distrib.launchers.logs import Mirror, open_log
from distrib.launchers.starting import Files, Running, Start
from distrib.rank_variables import PORT_FD
from distrib.signals import LIFELINE

POLL_SECONDS = 0.02
CAUSE_SECONDS = 3.0
"""How long to look for the cause when the first rank to end only says that it lost a peer."""
END_SECONDS = 3.0
"""Between asking a rank to end and killing it."""

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Member:
    """One started rank."""

    rank: int
    running: Running
    log: Path
    log_start: int

    def send(self, number: signal.Signals) -> None:
        """To the rank alone: its helpers (a tracker's, a loader's) must live until it has saved."""
        self.running.send(number)

    def send_to_group(self, number: signal.Signals) -> None:
        """To the rank and everything it started."""
        self.running.send(number, to_group=True)


class Supervisor:
    """Runs commands on this host to their end.

    Rank 0 writes to this process's standard output. Everything else a rank writes goes to its log;
    rank 0's standard error is shown on screen too.
    """

    def __init__(
        self, commands: Sequence[Command], *, start: Start, logs: Path, port_fd: int | None = None
    ) -> None:
        self._commands = commands
        self._start = start
        self._logs = logs
        self._port_fd = port_fd
        self._members: list[Member] = []
        self._deaths: dict[int, Death] = {}
        self._mirror: Mirror | None = None
        self._interrupts = 0

    def run(self) -> int:
        """The exit code of the job: 0, that of the rank that failed first, or 130 after Ctrl-C."""
        reading, writing = os.pipe()
        try:
            with self._handling_signals():
                self._start_all(lifeline=reading)
                finished = self._watch()
                if not finished:
                    self._end_all()
        finally:
            self._kill_groups()
            os.close(writing)
            os.close(reading)
            if self._mirror:
                self._mirror.close()
        if self._interrupts:
            return INTERRUPTED
        return 0 if finished else self._report()

    def _start_all(self, *, lifeline: int) -> None:
        for command in self._commands:
            path, log = open_log(self._logs, command, size=len(self._commands))
            try:
                member = self._start_one(command, log=log, path=path, lifeline=lifeline)
            finally:
                os.close(log)
            self._members.append(member)

    def _start_one(self, command: Command, *, log: int, path: Path, lifeline: int) -> Member:
        start = path.stat().st_size
        if command.rank == 0:
            running = self._start_first(command, log=log, lifeline=lifeline)
        else:
            running = self._start(command, Files(stdout=log, stderr=log, named={LIFELINE: lifeline}))
        return Member(rank=command.rank, running=running, log=path, log_start=start)

    def _start_first(self, command: Command, *, log: int, lifeline: int) -> Running:
        """Rank 0: on the terminal, and on the port that was reserved."""
        self._mirror = Mirror(log)
        port = {} if self._port_fd is None else {PORT_FD: self._port_fd}
        try:
            files = Files(stdout=1, stderr=self._mirror.writing, named={LIFELINE: lifeline, **port})
            return self._start(command, files)
        finally:
            os.close(self._mirror.writing)

    def _watch(self) -> bool:
        """Waits until all ranks ended well (True), one failed, or Ctrl-C came."""
        while not self._interrupts:
            if not self._poll():
                return not self._deaths
            if self._deaths and self._cause_is_known():
                return False
            time.sleep(POLL_SECONDS)
        return False

    def _poll(self) -> bool:
        """Notes who died; says whether any rank still runs."""
        now = time.monotonic()
        running = False
        for member in self._members:
            code = member.running.poll()
            running = running or code is None
            if code and member.rank not in self._deaths:
                self._deaths[member.rank] = Death(
                    rank=member.rank, code=code, seen_at=now, log=member.log, log_start=member.log_start
                )
        if self._mirror:
            self._mirror.update()
        return running

    def _cause_is_known(self) -> bool:
        cause = first_cause(self._deaths.values())
        return cause.code != PEER_LOST or time.monotonic() - cause.seen_at > CAUSE_SECONDS

    def _end_all(self) -> None:
        """Asks the ranks that are left to end; `_kill_groups` does not ask."""
        number = signal.SIGINT if self._interrupts else signal.SIGTERM
        for member in self._members:
            member.send_to_group(number)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline and self._interrupts < 2 and self._running():
            time.sleep(POLL_SECONDS)

    def _running(self) -> list[Member]:
        return [member for member in self._members if member.running.poll() is None]

    def _kill_groups(self) -> None:
        """Leaves nothing: also not what a rank that has ended had started."""
        for member in self._members:
            member.send_to_group(signal.SIGKILL)
        while left := self._running():
            for member in left:
                member.send(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _report(self) -> int:
        cause = first_cause(self._deaths.values())
        print(cause.describe(), file=sys.stderr, flush=True)
        return cause.exit_code

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Ctrl-C ends the job; SIGTERM and SIGUSR1 are passed on: the ranks save and exit by themselves."""
        handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]] = {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: self._pass_on,
            signal.SIGUSR1: self._pass_on,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for member in self._members:
            member.send(signal.Signals(number))
