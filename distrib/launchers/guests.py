"""Ranks that another program starts for us: torchrun, mpirun, horovodrun.

An agent on every host reaches it first, and so says what is wrong in its own words; finds where the ranks
meet; and at the end, however it comes, leaves no process of the job there, which those programs
do not all see to. The program itself runs under an agent too, so that it dies with its launcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGTERM, SIGUSR1, Signals

from distrib.launchers.base import Command, LaunchPlan
from distrib.launchers.cluster import AGENT_HERE, Cluster
from distrib.launchers.failure import Death, cause_in
from distrib.launchers.forwarding import forwarded
from distrib.launchers.hosts import HERE
from distrib.launchers.job_processes import JOB
from distrib.launchers.network import Link
from distrib.launchers.node import HOST_LOST, Node, Remote
from distrib.launchers.nodes import Reached, meeting, reached, tell
from distrib.launchers.starting import Files
from distrib.launchers.supervise import Supervisor
from distrib.rank_variables import GUEST
from distrib.signals import STOP

Commands = Callable[[Cluster, LaunchPlan, Link | None], list[Command]]
"""The commands for these hosts; without a link, by the hosts' names."""


def run_guests(cluster: Cluster, plan: LaunchPlan, commands: Commands, *, per_host: bool) -> int:
    """Runs a program's commands to their end; returns the job's exit code.

    Args:
        commands: of the program.
        per_host: one runs on each host; else a single one here, which reaches the hosts itself.
    """
    with ExitStack() as stack:
        hosts = stack.enter_context(reached(cluster, run_dir=plan.run_dir, timeout=plan.start_timeout))
        place = meeting(hosts, interface=cluster.interface, keep=False)
        for each in hosts:
            each.node.say({"job": plan.env[JOB]})
        nodes = [each.node for each in hosts] if per_host else [_driver(hosts, stack, plan)]
        here = replace(cluster, hosts=tuple(each.host for each in hosts))
        told = replace(plan, env={**forwarded(), **plan.env, GUEST: "1"}, master_port=place.port)
        logs = plan.run_dir / "logs"
        (logs / STOP).unlink(missing_ok=True)
        starts = {log: log.stat().st_size for log in logs.glob("rank-*.log")}
        return Supervisor(
            commands(here, told, place.link),
            start=partial(_start, nodes, watched=[each.node for each in hosts], stop=logs / STOP),
            logs=logs,
            label=(lambda command: f"[{command.host}] ") if len(nodes) > 1 else (lambda command: ""),
            describe=partial(_describe, logs, starts),
        ).run()


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A program that starts ranks; a `Running`."""

    program: Remote
    watched: Sequence[Node]
    stop: Path
    """Asks its ranks to save and stop, because not every program passes signals on."""

    def poll(self) -> int | None:
        """As `Running.poll`; `HOST_LOST` where a host of the job is."""
        code = self.program.poll()
        if code is None:
            for node in self.watched:
                if node.lost is not None:
                    self.program.tell_loss(node.name, node.lost)
                    return HOST_LOST
        return code

    def send(self, number: Signals, *, to_group: bool = False) -> None:
        """As `Running.send`; a request to stop goes to the ranks by a file that they look at."""
        if number in (SIGTERM, SIGUSR1) and not to_group:
            self.stop.write_text(number.name)
        else:
            self.program.send(number, to_group=to_group)


def _driver(hosts: Sequence[Reached], stack: ExitStack, plan: LaunchPlan) -> Node:
    """The agent on this machine."""
    if hosts[0].host is HERE:
        return hosts[0].node
    node = stack.enter_context(Node(HERE.name, AGENT_HERE, screen=tell))
    node.hello(timeout=plan.start_timeout)
    node.say({"job": plan.env[JOB]})
    return node


def _start(
    nodes: Sequence[Node], command: Command, files: Files, *, watched: Sequence[Node], stop: Path
) -> Guest:
    program = nodes[command.rank].start(command, files, cwd=os.getcwd())
    return Guest(program=program, watched=watched, stop=stop)


def _describe(logs: Path, starts: dict[Path, int], death: Death) -> str:
    """What the first rank to fail said, where it could; else what the program said last."""
    found = cause_in(logs, starts=starts)
    if death.code == HOST_LOST or found is None:
        return death.describe()
    rank, words = found
    return f"log of rank {rank}: {logs / f'rank-{rank}.log'}\nrank {rank} failed:\n{words}"
