"""``launcher=slurm``: plans, submits and follows; inside an allocation, starts the ranks there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.slurm import options
from distrib.launchers.slurm.parts import Nodes, Servers, parts, size_options
from distrib.launchers.slurm.script import SCRIPT, WORK, Work, output, script

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer

SHARED = ("partition", "account", "qos", "time", "requeue", "no-requeue")
"""Options that the servers' part has from the others' where it has none of its own."""


class Slurm(Launcher):
    """Submits the job to SLURM and follows it to its end; inside an allocation, starts it there.

    Args:
        num_processes: per node: one per GPU, or a few on CPUs.
        num_nodes: of the job.
        job_name: what squeue calls it.
        partition: one, or several with commas; None: the site's default, as for all that follow.
        account: to charge.
        qos: quality of service.
        time: limit, as ``2:00:00``.
        constraint: features that nodes must have.
        gpus_per_node: a number, or ``type:number``.
        cpus_per_task: cores of each process.
        mem: memory per node, as ``64G``.
        extra: more options of sbatch, as ``--gres=gpu:2``; servers' own nodes have only those that SLURM
            hands on by itself, as ``--exclude``.
        signal_seconds: how long before the time limit the ranks are asked to save; None: not at all.
        requeue: go back into the queue then, or when a node is lost, and on from the newest checkpoint.
        max_restarts: how often all ranks are started again in the same allocation after one died.
        servers: nodes of their own for the ranks of a strategy that only serve: a heterogeneous job.
        follow: stay until the job has ended; False: exit 0 once it is submitted.
    """

    def __init__(
        self,
        *,
        num_processes: int = 1,
        num_nodes: int = 1,
        job_name: str = "distrib",
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        time: str | None = None,
        constraint: str | None = None,
        gpus_per_node: str | None = None,
        cpus_per_task: int | None = None,
        mem: str | None = None,
        extra: Sequence[str] = (),
        signal_seconds: int | None = 60,
        requeue: bool = True,
        max_restarts: int = 0,
        servers: Servers | None = None,
        follow: bool = True,
    ) -> None:
        texts = {
            "job_name": job_name,
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "time": time,
            "gpus_per_node": gpus_per_node,
            "mem": mem,
        }
        options.check_texts(**texts)
        options.check_numbers(
            1,
            num_processes=num_processes,
            num_nodes=num_nodes,
            cpus_per_task=cpus_per_task,
            signal_seconds=signal_seconds,
        )
        options.check_numbers(0, max_restarts=max_restarts)
        options.check_extra(extra)
        self.num_processes = num_processes
        self.num_nodes = num_nodes
        self.texts = texts
        self.cpus_per_task = cpus_per_task
        self.extra = tuple(extra)
        self.signal_seconds = signal_seconds
        self.requeue = requeue
        self.max_restarts = max_restarts
        self.servers = servers or Servers()
        self.num_serving = self.servers.size
        self.follow = follow

    @property
    def size(self) -> int:
        """As `Launcher.size`."""
        return super().size + self.servers.size

    def plan(self, plan: LaunchPlan) -> list[Command]:
        """One command, which submits the script; the script starts the ranks with srun."""
        return [
            Command(
                argv=("sbatch", "--parsable", str(plan.run_dir / SCRIPT)), env={}, rank=0, program="sbatch"
            )
        ]

    def files(self, plan: LaunchPlan) -> Mapping[str, str]:
        """The script, and what it hands over to the node that it starts on."""
        return {
            SCRIPT: script(plan.run_dir, options=self.options_by_part(plan)),
            WORK: self.work(plan).to_json(),
        }

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        """As `Launcher.launch`. Raises `ConfigError` for what SLURM refuses by name, else `LaunchError`."""
        if server is not None:
            server.close()  # the ranks are elsewhere, and the job may wait for hours
        options.check_run_dir(plan.run_dir)
        (plan.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        if "SLURM_JOB_ID" in os.environ:
            return self._start_here(plan)
        from distrib.launchers.slurm.submit import submit_one

        return submit_one(self, plan)

    def launch_many(self, plans: Sequence[LaunchPlan], *, at_once: int | None) -> list[int]:
        """As `LaunchMany`: one array with a task for each plan.

        One after another inside an allocation, and with servers on nodes of their own, because SLURM makes
        no arrays of heterogeneous jobs.
        """
        for plan in plans:
            options.check_run_dir(plan.run_dir)
        if "SLURM_JOB_ID" in os.environ or self.servers.num_nodes:
            return [self.launch(plan) for plan in plans]
        from distrib.launchers.slurm.submit import submit_many

        return submit_many(self, plans, at_once=at_once)

    def sbatch_options(self, plan: LaunchPlan) -> dict[str, str | None]:
        """Of the script, by name without the dashes; None for one that has no value."""
        given = {key.replace("_", "-"): value for key, value in self.texts.items() if value is not None}
        lead = {} if self.signal_seconds is None else {"signal": f"B:USR1@{self.signal_seconds}"}
        own: dict[str, str | None] = {
            **given,
            **size_options(self),
            **lead,
            "requeue" if self.requeue else "no-requeue": None,
            "open-mode": "append",
            "output": output(plan.run_dir, "logs/slurm-%j.out"),
        }
        for option in self.extra:
            name, equals, value = option.removeprefix("--").partition("=")
            own[name] = value if equals else None
        return own

    def options_by_part(self, plan: LaunchPlan) -> list[dict[str, str | None]]:
        """The options of sbatch for each part of the job."""
        whole = self.sbatch_options(plan)
        if not self.servers.num_nodes:
            return [whole]
        shared = {name: whole[name] for name in SHARED if name in whole}
        own = {key: value for key, value in self.servers.texts.items() if value is not None}
        return [whole, {**shared, **own, **size_options(self.servers)}]

    def work(self, plan: LaunchPlan, *, heterogeneous: bool = True) -> Work:
        """What the script's process does on the first node.

        Args:
            heterogeneous: the allocation has a component for each part; False: the servers' nodes are the
                last of its only one.
        """
        from distrib.launchers.slurm.batch import newest_checkpoint

        return Work(
            run_dir=str(plan.run_dir),
            parts=tuple(parts(self._kinds(), plan.argv, run_dir=plan.run_dir, heterogeneous=heterogeneous)),
            env=plan.env,
            requeue=self.requeue,
            max_restarts=self.max_restarts,
            expendable=tuple(sorted(plan.expendable)),
            newest=newest_checkpoint(plan.run_dir),
        )

    def _kinds(self) -> list[Nodes]:
        return [self, self.servers] if self.servers.num_nodes else [self]

    def _start_here(self, plan: LaunchPlan) -> int:
        """In the allocation that this process is in, without a script."""
        from distrib.launchers.slurm.batch import allocation

        heterogeneous = "SLURM_HET_SIZE" in os.environ
        asked = {"launcher.num_nodes": self.num_nodes, "launcher.servers.num_nodes": self.servers.num_nodes}
        if heterogeneous:
            there = [_nodes(f"_HET_GROUP_{group}") for group in range(2)]
        else:
            there = [_nodes(), _nodes() - self.num_nodes]
        for (key, wanted), nodes in zip(asked.items(), there, strict=True):
            if nodes < wanted:
                job = os.environ["SLURM_JOB_ID"]
                raise ConfigError(
                    key, wanted, f"this allocation (job {job}) has {nodes} for it; ask for more"
                )
        return allocation(self.work(plan, heterogeneous=heterogeneous)).run()


def _nodes(suffix: str = "") -> int:
    """Of this allocation, or of one component of it."""
    return int(os.environ.get(f"SLURM_JOB_NUM_NODES{suffix}", "1"))
