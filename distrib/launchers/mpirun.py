"""Ranks under Open MPI's mpirun, on this machine or on the hosts of a file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.cluster import Cluster, address_of, check_restarts, without_users
from distrib.launchers.job_processes import JOB

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer
    from distrib.launchers.network import Link

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
"""In a container everybody is root, and mpirun refuses root by default."""


class Mpirun(Launcher):
    """Starts one mpirun here, which starts the ranks on the hosts over its own ssh.

    Args:
        hosts: a file, one ``host slots=N`` a line; None: this machine alone.
        num_processes: per host.
        num_nodes: how many hosts; None: all of the file.
        threads: of torch per process; None: a host's cores shared out evenly.
        interface: of the first host, whose network the ranks use; None: the first that all hosts share.
        python: the interpreter on every host; None: this one's path.
        ssh_config: a file for ``ssh -F``, with users, keys and ports; None: the user's own.
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
        ssh_config: str | None = None,
        max_restarts: int = 0,
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
        without_users(self.cluster.hosts, program="mpirun")
        self.num_processes, self.num_nodes = num_processes, self.cluster.num_nodes
        self.max_restarts = check_restarts(max_restarts)

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One mpirun for all ranks. Port 0 stands for a free one."""
        return commands(self.cluster, plan, None)

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `LaunchError` where hosts cannot be reached or do not fit."""
        from distrib.launchers.guests import run_guests
        from distrib.launchers.programs import require
        from distrib.launchers.restarts import with_restarts

        require("mpirun", remedy="apt-get install openmpi-bin")
        if server is not None:
            server.close()  # mpirun starts its ranks itself
        attempt = partial(run_guests, self.cluster, commands=commands, per_host=False)
        return with_restarts(attempt, plan, max_restarts=self.max_restarts)


def commands(cluster: Cluster, plan: LaunchPlan, link: Link | None) -> list[Command]:
    """One mpirun: pure. Values of variables go through its environment, only their names through ``-x``."""
    hosts = cluster.hosts[: cluster.num_nodes]
    address = link.addresses[0] if link else address_of(hosts[0])
    env = {**cluster.common_environment(plan, address=address), **_interfaces(link)}
    options = {
        "-np": cluster.num_nodes * cluster.num_processes,
        "--host": ",".join(f"{host.name}:{cluster.num_processes}" for host in hosts),
        "--map-by": "slot",
        "--bind-to": "none",
    }
    mca = {"plm_rsh_agent": " ".join(cluster.ssh()), "btl": "tcp,self,vader"}
    if JOB in plan.env:
        # mpirun's daemon on a host that is cut off waits for ever: so marked, the agent there ends it.
        mca["orte_launch_agent"] = f"env {JOB}={plan.env[JOB]} orted"
    if link is not None:
        mca |= {"btl_tcp_if_include": link.network, "oob_tcp_if_include": link.network}
    words = [str(word) for option in options.items() for word in option]
    words += [word for name, value in mca.items() for word in ("--mca", name, value)]
    words += [word for name in sorted(env) for word in ("-x", name)]
    argv = ("mpirun", *words, *cluster.worker(plan))
    return [Command(argv=argv, env={**AS_ROOT, **env}, rank=0, program="mpirun")]


def _interfaces(link: Link | None) -> dict[str, str]:
    """One name for all hosts, where they agree on one: a variable has one value everywhere."""
    return link.variables(0) if link is not None and len(set(link.names)) == 1 else {}
