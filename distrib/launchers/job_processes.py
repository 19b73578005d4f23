"""Which processes on this host belong to a job, and ending them. By the job's own name, never a program's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

JOB = "DISTRIB_JOB"
"""The name of a job, in the environment of all its processes; no secret."""

ROUNDS = 20
"""A process may start another one while it is being looked for."""


def machine() -> str:
    """Equal in two processes exactly where they share a kernel and a network: one host in the end."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return os.uname().nodename


def kill_all(groups: Iterable[int], *, job: str | None) -> None:
    """Kills process groups, and then what carries the job's name, until nothing is found."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    if job is None:
        return
    for _ in range(ROUNDS):
        found = members(job)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)


def members(job: str) -> list[int]:
    """The processes whose environment names ``job``, this one left out. Linux; elsewhere none is found."""
    mark = f"{JOB}={job}".encode()
    return [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if int(entry.name) != os.getpid() and mark in _environment(entry)
    ]


def _environment(process: Path) -> list[bytes]:
    """Empty for a process of somebody else, one that is gone, and a zombie."""
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
