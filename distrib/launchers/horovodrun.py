"""Ranks under horovodrun (gloo), on this machine or on the hosts of a file."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distrib.errors import LaunchError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.cluster import Cluster, address_of, check_restarts, without_users
from distrib.rank_variables import TOKEN, TOKEN_FILE

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer
    from distrib.launchers.hosts import Host
    from distrib.launchers.network import Link


class Horovodrun(Launcher):
    """Starts one horovodrun here, which starts the ranks on the hosts over its own ssh.

    It takes no ssh configuration but the user's own. A rank on a host that is cut off it does not
    notice; the agents on the hosts do.

    Args:
        hosts: a file, one ``host slots=N`` a line; None: this machine alone.
        num_processes: per host.
        num_nodes: how many hosts; None: all of the file.
        threads: of torch per process; None: a host's cores shared out evenly.
        interface: of the first host, whose network the ranks use; None: the first that all hosts share.
        python: the interpreter on every host; None: this one's path.
        max_restarts: how often the job is started again from its last checkpoint.
    """

    def __init__(
        self,
        *,
        hosts: str | None = None,
        num_processes: int = 1,
        num_nodes: int | None = None,
        threads: int | None = None,
        interface: str | None = None,
        python: str | None = None,
        max_restarts: int = 0,
    ) -> None:
        self.cluster = Cluster.of(
            hosts=hosts,
            num_nodes=num_nodes,
            num_processes=num_processes,
            threads=threads,
            interface=interface,
            python=python,
            ssh_config=None,
        )
        without_users(self.cluster.hosts, program="horovodrun")
        self.num_processes, self.num_nodes = num_processes, self.cluster.num_nodes
        self.max_restarts = check_restarts(max_restarts)

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One horovodrun for all ranks. Port 0 stands for a free one."""
        return commands(self.cluster, plan, None)

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `LaunchError` where hosts cannot be reached or do not fit."""
        from distrib.launchers.programs import require_horovod
        from distrib.launchers.restarts import with_restarts

        require_horovod()
        if server is not None:
            server.close()  # horovodrun starts its ranks itself
        return with_restarts(self._attempt, plan, max_restarts=self.max_restarts)

    def _attempt(self, plan: LaunchPlan) -> int:
        """With the token in a file: horovodrun writes every variable into the command line of its ssh."""
        from distrib.launchers.guests import run_guests

        file = plan.run_dir / "logs" / f".token-{secrets.token_hex(6)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(plan.env[TOKEN])
        env = {**{name: value for name, value in plan.env.items() if name != TOKEN}, TOKEN_FILE: str(file)}
        try:
            return run_guests(self.cluster, replace(plan, env=env), commands, per_host=False)
        finally:
            file.unlink(missing_ok=True)


def commands(cluster: Cluster, plan: LaunchPlan, link: Link | None) -> list[Command]:
    """One horovodrun: pure."""
    hosts = cluster.hosts[: cluster.num_nodes]
    address = link.addresses[0] if link else address_of(hosts[0])
    options = {
        "-np": cluster.num_nodes * cluster.num_processes,
        "-H": ",".join(f"{host.name}:{cluster.num_processes}" for host in hosts),
        "--start-timeout": f"{plan.start_timeout:.0f}",
    }
    if link is not None:
        options["--network-interfaces"] = _interface(link, hosts)
    words = [str(word) for option in options.items() for word in option]
    run = (sys.executable, "-m", "horovod.runner.launch", "--gloo", "--disable-cache", *words)
    env = cluster.common_environment(plan, address=address)
    return [Command(argv=(*run, *cluster.worker(plan)), env=env, rank=0, program="horovodrun")]


def _interface(link: Link, hosts: Sequence[Host]) -> str:
    """The one name that horovodrun gives all ranks. Raises `LaunchError` where hosts have others."""
    if len(set(link.names)) > 1:
        named = ", ".join(f"{name} on {host.name}" for host, name in zip(hosts, link.names, strict=True))
        raise LaunchError(
            f"horovodrun takes one name of an interface for all hosts, and {link.network} is at {named}: "
            "choose launcher=ssh, which tells each host its own, or name the interfaces alike"
        )
    return link.names[0]
