"""Processes on this machine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.cluster import check_restarts
from distrib.launchers.network import LOOPBACK, reserved_port
from distrib.rank_variables import in_torchruns_names
from distrib.world import World

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer


class Local(Launcher):
    """Starts the ranks on this machine and watches over them.

    Args:
        num_processes: how many.
        num_nodes: 1; several machines take a launcher that reaches them.
        threads: of torch per process; None: the processor cores shared out evenly.
        rejoins: how often, in all, a rank that died is started again to join a job that goes on without
            it; only for strategies that do.
        max_restarts: how often the job is started again from its last checkpoint when a rank has died.
    """

    def __init__(
        self,
        *,
        num_processes: int = 1,
        num_nodes: int = 1,
        threads: int | None = None,
        rejoins: int = 0,
        max_restarts: int = 0,
    ) -> None:
        if num_processes < 1:
            raise ConfigError("launcher.num_processes", num_processes, "at least 1 is needed")
        if num_nodes != 1:
            raise ConfigError(
                "launcher.num_nodes",
                num_nodes,
                "launcher=local starts processes on this machine only; on several, use "
                "launcher=ssh launcher.hosts=FILE",
            )
        if threads is not None and threads < 1:
            raise ConfigError(
                "launcher.threads", threads, "at least 1, or null for an even share of the cores"
            )
        if rejoins < 0:
            raise ConfigError("launcher.rejoins", rejoins, "must not be negative; 0 starts none again")
        self.rejoins = rejoins
        self.max_restarts = check_restarts(max_restarts)
        self.num_processes = num_processes
        self.num_nodes = num_nodes
        self.threads = threads

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One command per rank, in torchrun's variables. Port 0 stands for a free one."""
        return [
            Command(argv=plan.argv, env=self._env(rank, plan), rank=rank)
            for rank in range(self.num_processes)
        ]

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `LaunchError` where the server died."""
        from distrib.launchers.restarts import with_restarts

        if server is not None:
            server.load(plan.imports)
        attempt = partial(self._attempt, server=server)
        return with_restarts(attempt, plan, max_restarts=self.max_restarts)

    def _attempt(self, plan: LaunchPlan, *, server: ForkServer | None) -> int:
        from distrib.launchers.starting import popen
        from distrib.launchers.supervise import Supervisor

        with reserved_port(plan.master_port) as port:
            return Supervisor(
                self.plan(replace(plan, master_port=port.getsockname()[1])),
                start=server.start if server else popen,
                logs=plan.run_dir / "logs",
                port_fd=port.fileno(),
                expendable=plan.expendable,
                rejoins=self.rejoins,
            ).run()

    def _env(self, rank: int, plan: LaunchPlan) -> dict[str, str]:
        size = self.num_processes
        place = World(
            rank=rank,
            size=size,
            local_rank=rank,
            local_size=size,
            master_address=LOOPBACK,
            master_port=plan.master_port,
        )
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**in_torchruns_names(place), **threads, **plan.env}
