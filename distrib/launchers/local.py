"""Processes on this machine."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.rank_variables import TOKEN

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer

LOOPBACK = "127.0.0.1"


class Local(Launcher):
    """Starts the ranks on this machine and watches over them.

    Args:
        num_processes: how many.
        num_nodes: 1; several machines take a launcher that reaches them.
        threads: of torch per process; None: the processor cores shared out evenly.
        rejoins: how often, in all, a rank that died is started again to join a job that goes on without
            it; only for strategies that do.
    """

    def __init__(
        self, *, num_processes: int = 1, num_nodes: int = 1, threads: int | None = None, rejoins: int = 0
    ) -> None:
        if num_processes < 1:
            raise ConfigError("launcher.num_processes", num_processes, "at least 1 is needed")
        if num_nodes != 1:
            raise ConfigError(
                "launcher.num_nodes",
                num_nodes,
                "launcher=local starts processes on this machine only; on every machine, start "
                "`torchrun --nnodes ... -m distrib train ...` with the same settings",
            )
        if threads is not None and threads < 1:
            raise ConfigError(
                "launcher.threads", threads, "at least 1, or null for an even share of the cores"
            )
        if rejoins < 0:
            raise ConfigError("launcher.rejoins", rejoins, "must not be negative; 0 starts none again")
        self.rejoins = rejoins
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
        from distrib.launchers.starting import popen
        from distrib.launchers.supervise import Supervisor

        with reserved_port(plan.master_port) as port:
            # Not in `plan`, which is printed.
            env = {**plan.env, TOKEN: secrets.token_hex(16)}
            return Supervisor(
                self.plan(replace(plan, master_port=port.getsockname()[1], env=env)),
                start=server.start if server else popen,
                logs=plan.run_dir / "logs",
                port_fd=port.fileno(),
                expendable=plan.expendable,
                rejoins=self.rejoins,
            ).run()

    def _env(self, rank: int, plan: LaunchPlan) -> dict[str, str]:
        size = str(self.num_processes)
        env = {
            "RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": size,
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(plan.master_port),
        }
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**env, **threads, **plan.env}


@contextlib.contextmanager
def reserved_port(port: int) -> Iterator[socket.socket]:
    """A socket bound on the loopback interface, not yet listening: rank 0 will, on the same socket.

    So no other program can take the port in between, and two jobs on one host never meet.
    """
    with socket.socket() as bound:
        bound.bind((LOOPBACK, port))
        yield bound
