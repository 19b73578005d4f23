"""``launcher=slurm``: plans, submits and follows; inside an allocation, starts the ranks there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distrib.errors import ConfigError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.slurm import options
from distrib.launchers.slurm.script import SCRIPT, WORK, Work, output, script, srun

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer


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
        extra: more options of sbatch, as ``--gres=gpu:2``.
        signal_seconds: how long before the time limit the ranks are asked to save; None: not at all.
        requeue: go back into the queue then, or when a node is lost, and on from the newest checkpoint.
        max_restarts: how often all ranks are started again in the same allocation after one died.
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
        self.follow = follow

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
            SCRIPT: script(plan.run_dir, options=self.sbatch_options(plan)),
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
        """As `LaunchMany`: one array with a task for each plan; inside an allocation, one after another."""
        for plan in plans:
            options.check_run_dir(plan.run_dir)
        if "SLURM_JOB_ID" in os.environ:
            return [self.launch(plan) for plan in plans]
        from distrib.launchers.slurm.submit import submit_many

        return submit_many(self, plans, at_once=at_once)

    def sbatch_options(self, plan: LaunchPlan) -> dict[str, str | None]:
        """Of the script, by name without the dashes; None for one that has no value."""
        given = {key.replace("_", "-"): value for key, value in self.texts.items() if value is not None}
        lead = {} if self.signal_seconds is None else {"signal": f"B:USR1@{self.signal_seconds}"}
        own: dict[str, str | None] = {
            **given,
            **self._size(),
            **lead,
            "requeue" if self.requeue else "no-requeue": None,
            "open-mode": "append",
            "output": output(plan.run_dir, "logs/slurm-%j.out"),
        }
        for option in self.extra:
            name, equals, value = option.removeprefix("--").partition("=")
            own[name] = value if equals else None
        return own

    def work(self, plan: LaunchPlan) -> Work:
        """What the script's process does on the first node."""
        from distrib.launchers.slurm.batch import newest_checkpoint

        size = {**self._size(), "ntasks": str(self.num_nodes * self.num_processes)}
        threads = {} if self.cpus_per_task is None else {"OMP_NUM_THREADS": str(self.cpus_per_task)}
        return Work(
            run_dir=str(plan.run_dir),
            srun=srun(plan.argv, run_dir=plan.run_dir, options=size),
            env={**threads, **plan.env},
            requeue=self.requeue,
            max_restarts=self.max_restarts,
            expendable=tuple(sorted(plan.expendable)),
            newest=newest_checkpoint(plan.run_dir),
        )

    def _size(self) -> dict[str, str]:
        cores = {} if self.cpus_per_task is None else {"cpus-per-task": str(self.cpus_per_task)}
        return {"nodes": str(self.num_nodes), "ntasks-per-node": str(self.num_processes), **cores}

    def _start_here(self, plan: LaunchPlan) -> int:
        """In the allocation that this process is in, without a script."""
        from distrib.launchers.slurm.batch import allocation

        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if nodes < self.num_nodes:
            raise ConfigError(
                "launcher.num_nodes",
                self.num_nodes,
                f"this allocation (job {os.environ['SLURM_JOB_ID']}) has {nodes}; ask for more",
            )
        return allocation(self.work(plan)).run()
