"""Watches over the ranks of a job: the first failure ends the job, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from distrib.launchers.base import Command
from distrib.launchers.failure import PEER_LOST, Death, first_cause
from distrib.launchers.logs import Mirror, open_log
from distrib.launchers.starting import Files, Running, Start
from distrib.rank_variables import PORT_FD, REJOIN
from distrib.signals import LIFELINE, Handler, handling

POLL_SECONDS = 0.02
CAUSE_SECONDS = 3.0
"""How long to look for the cause when the first rank to end only says that it lost a peer."""
END_SECONDS = 3.0
"""Between asking a rank to end and killing it."""

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Member:
    """One started rank."""

    command: Command
    running: Running
    log: Path
    log_start: int

    @property
    def rank(self) -> int:
        return self.command.rank

    def send(self, number: signal.Signals) -> None:
        """To the rank alone: its helpers (a tracker's, a loader's) must live until it has saved."""
        self.running.send(number)

    def send_to_group(self, number: signal.Signals) -> None:
        """To the rank and everything it started."""
        self.running.send(number, to_group=True)


class Supervisor:
    """Runs commands to their end, wherever ``start`` starts them.

    Rank 0 writes to this process's standard output. Everything else a rank writes goes to its log;
    rank 0's standard error is shown on screen too.

    Args:
        expendable: ranks whose death the job survives; the death of any other ends it.
        rejoins: how often, in all, an expendable rank that died is started again.
        label: what stands in front of a rank's lines, which are all shown then.
        describe: the last words on screen of a job that failed.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        start: Start,
        logs: Path,
        port_fd: int | None = None,
        expendable: Collection[int] = (),
        rejoins: int = 0,
        label: Callable[[Command], str] | None = None,
        describe: Callable[[Death], str] = Death.describe,
    ) -> None:
        self._commands = commands
        self._start = start
        self._logs = logs
        self._port_fd = port_fd
        self._expendable = expendable
        self._rejoins_left = rejoins
        self._label = label
        self._describe = describe
        self._lifeline = -1
        self._members: list[Member] = []
        self._deaths: dict[int, Death] = {}
        self._lost: dict[int, Death] = {}
        self._mirrors: list[Mirror] = []
        self._interrupts = 0

    def run(self) -> int:
        """The exit code of the job: 0, that of the rank that failed first, or 130 after Ctrl-C."""
        self._lifeline, writing = os.pipe()
        try:
            with handling(self._handlers()):
                self._members = [self._start_one(command) for command in self._commands]
                finished = self._watch()
                if not finished:
                    self._end_all()
        finally:
            self._kill_groups()
            os.close(writing)
            os.close(self._lifeline)
            for mirror in self._mirrors:
                mirror.close()
        if self._interrupts:
            return INTERRUPTED
        return 0 if finished else self._report()

    def _start_one(self, command: Command) -> Member:
        path, log = open_log(self._logs, command, size=len(self._commands))
        start = path.stat().st_size
        mirror = self._mirror_of(command, log=log)
        err = mirror.writing if mirror else log
        first = command.rank == 0
        port = {PORT_FD: self._port_fd} if first and self._port_fd is not None else {}
        try:
            files = Files(stdout=1 if first else err, stderr=err, named={LIFELINE: self._lifeline, **port})
            running = self._start(command, files)
        finally:
            os.close(log)
            if mirror:
                os.close(mirror.writing)
        return Member(command=command, running=running, log=path, log_start=start)

    def _mirror_of(self, command: Command, *, log: int) -> Mirror | None:
        """Shows a rank on screen: rank 0, and with labels every one."""
        if command.rank and self._label is None:
            return None
        label = self._label(command) if self._label else ""
        self._mirrors.append(Mirror(log, rank=command.rank, label=label))
        return self._mirrors[-1]

    def _watch(self) -> bool:
        """Waits until all ranks ended well (True), one failed, or Ctrl-C came."""
        while not self._interrupts:
            if not self._poll():
                return bool(self._members) and not self._deaths
            if self._deaths and self._cause_is_known():
                return False
            time.sleep(POLL_SECONDS)
        return False

    def _poll(self) -> bool:
        """Notes who died; says whether any rank still runs."""
        now = time.monotonic()
        running = False
        for member in list(self._members):
            code = member.running.poll()
            running = running or code is None
            if not code or member.rank in self._deaths:
                continue
            death = Death(
                rank=member.rank, code=code, seen_at=now, log=member.log, log_start=member.log_start
            )
            if member.rank in self._expendable:
                running = self._go_on_without(member, death) or running
            else:
                self._deaths[member.rank] = death
        for mirror in self._mirrors:
            mirror.update()
        return running

    def _go_on_without(self, member: Member, death: Death) -> bool:
        """Says who is gone, and starts it again while there are rejoins left; whether it was."""
        member.send_to_group(signal.SIGKILL)  # what it had started
        self._members.remove(member)
        self._lost[member.rank] = death
        # Whom rank 0 has not waited for has nothing left to join.
        ended = any(other.rank == 0 and other.running.poll() is not None for other in self._members)
        again = self._rejoins_left > 0 and not ended
        then = "is started again" if again else "the job goes on without it"
        print(f"notice: rank {member.rank} {death.how}; {then}", file=sys.stderr, flush=True)
        if again:
            self._rejoins_left -= 1
            count = int(member.command.env.get(REJOIN, "0")) + 1
            env = {**member.command.env, REJOIN: str(count)}
            self._members.append(self._start_one(replace(member.command, env=env)))
        return again

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
        cause = first_cause((self._deaths or self._lost).values())
        print(self._describe(cause), file=sys.stderr, flush=True)
        return cause.exit_code

    def _handlers(self) -> Mapping[signal.Signals, Handler]:
        """Ctrl-C ends the job; SIGTERM and SIGUSR1 are passed on: the ranks save and exit by themselves."""
        return {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: self._pass_on,
            signal.SIGUSR1: self._pass_on,
        }

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for member in self._members:
            member.send(signal.Signals(number))
