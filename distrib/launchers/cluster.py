"""Which hosts a job runs on and how they are reached: the settings that launchers over ssh share."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from distrib.errors import ConfigError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.hosts import HERE, Host, read_hosts, with_room
from distrib.rank_variables import in_torchruns_names
from distrib.world import World

WORD = re.compile(r"[A-Za-z0-9_./+@:~-]+", re.ASCII)
"""What a remote shell reads as it stands: ssh gives it the path of the interpreter."""

CONNECT_SECONDS = 10

AGENT_HERE = (sys.executable, "-m", "distrib.launchers.agent")
"""Starts an agent on this machine."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The hosts of a job, checked."""

    hosts: tuple[Host, ...]
    """In order; more than ``num_nodes`` are a reserve."""
    num_nodes: int
    num_processes: int
    threads: int | None
    interface: str | None
    python: str
    ssh_config: str | None

    @classmethod
    def of(
        cls,
        *,
        hosts: str | None,
        num_nodes: int | None,
        num_processes: int,
        threads: int | None,
        interface: str | None,
        python: str | None,
        ssh_config: str | None,
    ) -> Cluster:
        """From a launcher's settings. Raises `ConfigError` for those that make no job."""
        _check_counts(num_nodes=num_nodes, num_processes=num_processes, threads=threads)
        _check_words(interface=interface, python=python, ssh_config=ssh_config)
        if hosts is None and num_nodes not in (None, 1):
            raise ConfigError("launcher.num_nodes", num_nodes, "several machines take launcher.hosts=FILE")
        listed = [HERE] if hosts is None else read_hosts(hosts)
        nodes = num_nodes or len(listed)
        if hosts is not None:
            listed = with_room(listed, file=hosts, num_nodes=nodes, num_processes=num_processes)
        return cls(
            hosts=tuple(listed),
            num_nodes=nodes,
            num_processes=num_processes,
            threads=threads,
            interface=interface,
            python=python or sys.executable,
            ssh_config=ssh_config,
        )

    def agent(self, host: Host) -> list[str]:
        """What starts the agent on ``host``. All that a shell there reads is the interpreter's path."""
        if host is HERE:
            return list(AGENT_HERE)
        remote = [self.python, "-m", "distrib.launchers.agent"]
        return [*self.ssh(), "-T", "--", host.name, *remote]

    def ssh(self) -> list[str]:
        """ssh that never asks, and never trusts a host it does not know."""
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            f"ConnectTimeout={CONNECT_SECONDS}",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ForwardX11=no",
        ]
        config = ["-F", self.ssh_config] if self.ssh_config else []
        return ["ssh", *config, *(f"-o{option}" for option in options)]

    def worker(self, plan: LaunchPlan) -> tuple[str, ...]:
        """What every rank runs, by the interpreter that the hosts have."""
        first, *rest = plan.argv
        return (self.python if first == sys.executable else first, *rest)

    def rank_environment(
        self, plan: LaunchPlan, *, address: str, node: int, local_rank: int
    ) -> dict[str, str]:
        """One rank's place, in torchrun's names."""
        place = World(
            rank=node * self.num_processes + local_rank,
            size=self.num_nodes * self.num_processes,
            local_rank=local_rank,
            local_size=self.num_processes,
            node=node,
            num_nodes=self.num_nodes,
        )
        return {**in_torchruns_names(place), **self.common_environment(plan, address=address)}

    def common_environment(self, plan: LaunchPlan, *, address: str) -> dict[str, str]:
        """What all ranks are told alike."""
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {"MASTER_ADDR": address, "MASTER_PORT": str(plan.master_port), **threads, **plan.env}


def address_of(host: Host) -> str:
    """How the other hosts call it, as long as no interface is chosen."""
    return host.name.rpartition("@")[2] if host is not HERE else "127.0.0.1"


def _check_counts(*, num_nodes: int | None, num_processes: int, threads: int | None) -> None:
    if num_processes < 1:
        raise ConfigError("launcher.num_processes", num_processes, "at least 1 is needed")
    if num_nodes is not None and num_nodes < 1:
        raise ConfigError("launcher.num_nodes", num_nodes, "at least 1, or null for all hosts of the file")
    if threads is not None and threads < 1:
        raise ConfigError("launcher.threads", threads, "at least 1, or null for an even share of the cores")


def _check_words(**values: str | None) -> None:
    """For what ends up in another program's arguments or in a remote shell."""
    for key, value in values.items():
        if value is not None and (not WORD.fullmatch(value) or value.startswith("-")):
            raise ConfigError(f"launcher.{key}", value, "may hold letters, digits and _ . / + @ : ~ - only")


def check_restarts(max_restarts: int) -> int:
    """Raises `ConfigError` for a number below 0."""
    if max_restarts < 0:
        raise ConfigError("launcher.max_restarts", max_restarts, "must not be negative; 0: no restart")
    return max_restarts


def without_users(hosts: Sequence[Host], *, program: str) -> None:
    """Raises `ConfigError` for ``user@host``, which ``program`` does not read."""
    for host in hosts:
        if "@" in host.name:
            raise ConfigError(
                "launcher.hosts", host.name, f"{program} takes no user: set it in ssh's own configuration"
            )


def names(hosts: Sequence[Host]) -> str:
    """For the user."""
    return ", ".join(host.name for host in hosts)
