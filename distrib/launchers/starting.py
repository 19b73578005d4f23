"""Starting one rank on this host, in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from distrib.launchers.base import Command
from distrib.rank_variables import RANK_VARIABLES


@dataclass(frozen=True, kw_only=True)
class Files:
    """The open files a rank is given, by descriptor."""

    stdout: int
    stderr: int
    named: Mapping[str, int] = field(default_factory=dict)
    """More files: the rank finds each descriptor's number in the variable of that name."""


class Running(Protocol):
    """A started rank: the leader of its own session and process group."""

    def poll(self) -> int | None:
        """None while it runs; then its exit code, or minus the number of the signal that killed it."""

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Sends a signal to it alone, or to it and everything it started; nothing where it is gone."""


Start = Callable[[Command, Files], Running]


def environment(command: Command) -> dict[str, str]:
    """This process's environment without any rank of its own, and what the command sets."""
    ours = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return {**ours, **command.env}


def send_signal(leader: int, number: signal.Signals, *, to_group: bool) -> None:
    """A signal to a process of this host or to its group; nothing where it is gone."""
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if to_group else os.kill)(leader, number)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A fresh process of this host."""

    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its number, which is its group's too."""
        return self.popen.pid

    def poll(self) -> int | None:
        """As `Running.poll`."""
        return self.popen.poll()

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """As `Running.send`."""
        send_signal(self.pid, number, to_group=to_group)


def popen(command: Command, files: Files) -> Process:
    """Starts a rank as a fresh process."""
    started = subprocess.Popen(
        command.argv,
        env={**environment(command), **{name: str(fd) for name, fd in files.named.items()}},
        stdin=subprocess.DEVNULL,
        stdout=files.stdout,
        stderr=files.stderr,
        pass_fds=tuple(files.named.values()),
        start_new_session=True,
    )
    return Process(popen=started)
