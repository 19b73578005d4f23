"""Starting one rank on this host, in a session of its own."""

from __future__ import annotations

import os
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

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """None while it runs; then its exit code, or minus the number of the signal that killed it."""


Start = Callable[[Command, Files], Running]


def environment(command: Command) -> dict[str, str]:
    """This process's environment without any rank of its own, and what the command sets."""
    ours = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return {**ours, **command.env}


def popen(command: Command, files: Files) -> Running:
    """Starts a rank as a fresh process."""
    return subprocess.Popen(
        command.argv,
        env={**environment(command), **{name: str(fd) for name, fd in files.named.items()}},
        stdin=subprocess.DEVNULL,
        stdout=files.stdout,
        stderr=files.stderr,
        pass_fds=tuple(files.named.values()),
        start_new_session=True,
    )
