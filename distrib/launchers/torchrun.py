"""Ranks under torchrun, on this machine or on the hosts of a file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.cluster import Cluster, address_of, check_restarts

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer
    from distrib.launchers.network import Link


class Torchrun(Launcher):
    """Starts one torchrun on every host, which starts the ranks there.

    Args:
        hosts: a file, one ``host slots=N`` a line; None: this machine alone.
        num_processes: per host.
        num_nodes: how many hosts; None: all of the file.
        threads: of torch per process; None: torchrun's own choice, 1 where there are several.
        interface: of the first host, whose network the ranks use; None: the first that all hosts share.
        python: the interpreter on every host; None: this one's path.
        ssh_config: a file for ``ssh -F``, with users, keys and ports; None: the user's own.
        max_restarts: how often the job is started again from its last checkpoint. torchrun's own
            ``--max-restarts`` is not used: it came back in 0 of 4 tries with gloo.
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
        self.num_processes, self.num_nodes = num_processes, self.cluster.num_nodes
        self.max_restarts = check_restarts(max_restarts)

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One torchrun per host. Port 0 stands for a free one."""
        return commands(self.cluster, plan, None)

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `LaunchError` where hosts cannot be reached or do not fit."""
        from distrib.launchers.guests import run_guests
        from distrib.launchers.restarts import with_restarts

        if server is not None:
            server.close()  # torchrun starts its ranks itself
        attempt = partial(run_guests, self.cluster, commands=commands, per_host=True)
        return with_restarts(attempt, plan, max_restarts=self.max_restarts)


def commands(cluster: Cluster, plan: LaunchPlan, link: Link | None) -> list[Command]:
    """One torchrun per host: pure."""
    hosts = cluster.hosts[: cluster.num_nodes]
    address = link.addresses[0] if link else address_of(hosts[0])
    shared = {
        "--nnodes": cluster.num_nodes,
        "--nproc-per-node": cluster.num_processes,
        "--master-addr": address,
        "--master-port": plan.master_port,
        "--max-restarts": 0,
        "--monitor-interval": 0.1,
        "--rdzv-conf": f"timeout={plan.start_timeout:g}",
    }
    options = [word for name, value in shared.items() for word in (name, str(value))]
    run = [cluster.python, "-m", "torch.distributed.run"]
    worker = ["--no-python", *cluster.worker(plan)]
    threads = {} if cluster.threads is None else {"OMP_NUM_THREADS": str(cluster.threads)}
    return [
        Command(
            argv=(*run, *options, "--node-rank", str(node), *worker),
            env={**threads, **(link.variables(node) if link else {}), **plan.env},
            rank=node,
            host=host.name,
            program="torchrun",
        )
        for node, host in enumerate(hosts)
    ]
