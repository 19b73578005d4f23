"""What every launcher promises: planning is pure, launching runs the plan to its end."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """One job, before a launcher turns it into processes."""

    run_dir: Path
    """Logs go to ``logs/`` in it."""
    argv: tuple[str, ...]
    """What every rank runs."""
    start_timeout: float = 120.0
    """Seconds until all ranks must have met; for launchers whose own agents wait for each other."""
    env: Mapping[str, str] = field(default_factory=dict)
    """More variables for every rank."""
    master_port: int = 0
    """Where the ranks meet; 0: a free port, chosen at launch."""
    expendable: frozenset[int] = frozenset()
    """Ranks without which the job goes on: the strategy's word."""
    imports: tuple[str, ...] = ()
    """Modules that every rank imports: the model's word."""

    @classmethod
    def of_worker(cls, run_dir: Path) -> LaunchPlan:
        """The job that trains what ``config.yaml`` in ``run_dir`` says."""
        return cls(run_dir=run_dir, argv=(sys.executable, "-m", "distrib.worker", str(run_dir)))


@dataclass(frozen=True, kw_only=True)
class Command:
    """One process of a job: never a shell string."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """What is set besides the launcher's own environment."""
    rank: int
    host: str = "localhost"
    program: str = ""
    """Of somebody else's launcher, which starts the ranks: its log is named so. Empty: a rank itself."""

    @property
    def log_name(self) -> str:
        """Its file in ``logs/``, without the ending."""
        return f"{self.program}-{self.rank}" if self.program else f"rank-{self.rank}"


class LaunchMany(Protocol):
    """Runs independent jobs to their end, at most ``at_once`` at a time (None: no limit but the cluster's).

    Returns their exit codes in the order of ``plans``.
    """

    def __call__(self, plans: Sequence[LaunchPlan], *, at_once: int | None) -> list[int]: ...


class Launcher(ABC):
    """Starts the processes of a job. Constructor arguments are the keys of ``conf/launcher/<name>.yaml``."""

    num_processes: int
    """Per node."""
    num_nodes: int
    num_serving: int = 0
    """How many of the last ranks have hosts meant for ranks that serve; 0: all hosts are alike."""
    launch_many: LaunchMany | None = None
    """For the trials of a sweep, where a launcher has a better way than one by one, as a job array."""

    @property
    def size(self) -> int:
        """Ranks of the whole job."""
        return self.num_processes * self.num_nodes

    @abstractmethod
    def plan(self, plan: LaunchPlan) -> list[Command]:
        """The commands of a job, in order of rank: pure, so that it can be printed and compared."""

    def files(self, plan: LaunchPlan) -> Mapping[str, str]:
        """What `launch` first writes into the run directory, by name: pure as well."""
        return {}

    @abstractmethod
    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """Runs the job to its end and returns its exit code; leaves no process behind.

        Args:
            plan: what to run.
            server: started early by the command, so that ranks on this host need not import torch anew.
        """
