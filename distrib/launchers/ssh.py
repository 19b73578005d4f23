"""Processes on the hosts of a file, started over ssh by an agent on each."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.cluster import Cluster, address_of, check_restarts

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer


class SSH(Launcher):
    """Starts the ranks on several machines and watches over all of them.

    Every host needs the same distrib and torch, a key that lets this user in without a password, a known
    host key, and the working directory and ``run_dir`` at the same path.

    Args:
        hosts: a file, one ``host slots=N`` a line; more hosts than ``num_nodes`` are a reserve.
        num_processes: per host.
        num_nodes: how many hosts; None: all of the file.
        threads: of torch per process; None: a host's cores shared out evenly.
        interface: of the first host, whose network the ranks use; None: the first that all hosts share.
        python: the interpreter on every host; None: this one's path.
        ssh_config: a file for ``ssh -F``, with users, keys and ports; None: the user's own.
        max_restarts: how often the job is started again from its last checkpoint.
        rejoins: how often, in all, a rank that died is started again where the strategy allows it.
    """

    def __init__(
        self,
        *,
        hosts: str,
        num_processes: int = 1,
        num_nodes: int | None = None,
        threads: int | None = None,
        interface: str | None = None,
        python: str | None = None,
        ssh_config: str | None = None,
        max_restarts: int = 0,
        rejoins: int = 0,
    ) -> None:
        self.cluster = Cluster.of(
            hosts=hosts,
            num_nodes=num_nodes,
            num_processes=num_processes,
            threads=threads,
            interface=interface,
            python=python,
            ssh_config=ssh_config,
        )
        self.num_processes, self.num_nodes = num_processes, self.cluster.num_nodes
        self.max_restarts = check_restarts(max_restarts)
        if rejoins < 0:
            raise ConfigError("launcher.rejoins", rejoins, "must not be negative; 0: a dead rank stays dead")
        self.rejoins = rejoins

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One command per rank, in torchrun's variables. Port 0 stands for a free one."""
        hosts = self.cluster.hosts[: self.num_nodes]
        return [
            Command(
                argv=self.cluster.worker(plan),
                env=self.cluster.rank_environment(
                    plan, address=address_of(hosts[0]), node=node, local_rank=local_rank
                ),
                rank=node * self.num_processes + local_rank,
                host=host.name,
            )
            for node, host in enumerate(hosts)
            for local_rank in range(self.num_processes)
        ]

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `LaunchError` where hosts cannot be reached or do not fit."""
        from distrib.launchers.restarts import with_restarts

        if server is not None:
            server.close()  # no rank is started by it
        return with_restarts(self._attempt, plan, max_restarts=self.max_restarts)

    def _attempt(self, plan: LaunchPlan) -> int:
        from distrib.launchers.forwarding import forwarded
        from distrib.launchers.nodes import meeting, reached
        from distrib.launchers.remote import label, start_on, starting_commands
        from distrib.launchers.supervise import Supervisor

        with reached(self.cluster, run_dir=plan.run_dir, timeout=plan.start_timeout) as hosts:
            place = meeting(hosts, interface=self.cluster.interface, keep=True)
            told = replace(plan, env={**forwarded(), **plan.env}, master_port=place.port)
            commands = starting_commands(self.plan(told), hosts, place, num_processes=self.num_processes)
            return Supervisor(
                commands,
                start=partial(start_on, hosts, num_processes=self.num_processes, cwd=os.getcwd()),
                logs=plan.run_dir / "logs",
                expendable=plan.expendable,
                rejoins=self.rejoins,
                label=label,
            ).run()
