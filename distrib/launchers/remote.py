"""Commands of a plan on the hosts that were reached: where they start and what they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distrib.launchers.base import Command
from distrib.launchers.job_processes import JOB
from distrib.launchers.node import Remote
from distrib.launchers.nodes import Meeting, Reached
from distrib.launchers.starting import Files
from distrib.rank_variables import PORT_FD, REJOIN
from distrib.signals import LIFELINE


def starting_commands(
    commands: Sequence[Command], hosts: Sequence[Reached], place: Meeting, *, num_processes: int
) -> list[Command]:
    """The plan's commands, with the hosts that answered and the address where the ranks meet."""
    placed = []
    for command in commands:
        node = command.rank // num_processes
        env = {**command.env, "MASTER_ADDR": place.link.addresses[0], **place.link.variables(node)}
        placed.append(replace(command, env=env, host=hosts[node].host.name))
    return placed


def start_on(
    hosts: Sequence[Reached], command: Command, files: Files, *, num_processes: int, cwd: str
) -> Remote:
    """Starts a command on its host. Rank 0 inherits the port; started again, it finds its own."""
    node = hosts[command.rank // num_processes].node
    node.say({"job": command.env[JOB]})
    first = command.rank == 0 and REJOIN not in command.env
    return node.start(command, files, cwd=cwd, inherits=[LIFELINE, *([PORT_FD] if first else [])])


def label(command: Command) -> str:
    """What stands in front of a rank's lines on screen."""
    return f"[{command.host} rank {command.rank}] "
