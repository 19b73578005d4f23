"""The hosts of a job: ``name slots=N``, one a line, as mpirun and horovodrun read it too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import ConfigError

NAME = re.compile(r"(?:[A-Za-z_][\w.-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
"""A host name or address, perhaps with a user. It ends up in commands: no option, space or shell sign."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine that may run ranks."""

    name: str
    slots: int = 1
    """How many ranks it takes."""


HERE = Host(name="localhost")
"""This machine, reached without ssh."""


def read_hosts(file: str | Path) -> list[Host]:
    """The hosts in ``file``. Raises `ConfigError` naming the line that is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError("launcher.hosts", file, f"cannot be read: {reason}") from error
    words = [(number, line.partition("#")[0].split()) for number, line in enumerate(lines, start=1)]
    hosts = [_host(line, where=f"{file}:{number}") for number, line in words if line]
    names = [host.name for host in hosts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("launcher.hosts", file, f"lists {', '.join(twice)} twice; give it more slots")
    if not hosts:
        raise ConfigError("launcher.hosts", file, "lists no host; write one a line, as `node1 slots=4`")
    return hosts


def _host(words: Sequence[str], *, where: str) -> Host:
    name, *settings = words
    if not NAME.fullmatch(name):
        raise ConfigError("launcher.hosts", where, f"{name!r} is not the name or address of a host")
    if not settings:
        return Host(name=name)
    slots = re.fullmatch(r"slots=([1-9][0-9]{0,5})", settings[0], re.ASCII)
    if len(settings) > 1 or slots is None:
        raise ConfigError("launcher.hosts", where, f"write `{name} slots=4`, not {' '.join(words)!r}")
    return Host(name=name, slots=int(slots[1]))


def with_room(hosts: Sequence[Host], *, file: str, num_nodes: int, num_processes: int) -> list[Host]:
    """The hosts that take ``num_processes`` ranks; more than ``num_nodes`` are a reserve.

    Raises `ConfigError` where a job of that size does not fit.
    """
    fit = [host for host in hosts if host.slots >= num_processes]
    if len(fit) >= num_nodes:
        return fit
    if len(hosts) < num_nodes:
        raise ConfigError("launcher.num_nodes", num_nodes, f"{file} lists {len(hosts)} hosts")
    small = ", ".join(f"{host.name} has {host.slots}" for host in hosts if host not in fit)
    raise ConfigError(
        "launcher.num_processes",
        num_processes,
        f"more ranks than slots: {small} (launcher.hosts={file})",
    )
