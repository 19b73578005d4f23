"""What one process finds on its host, without asking anybody."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrib.launchers.network import interfaces
from distrib.tracking.environment import hardware, versions

GIB = 2**30
NO_LIMIT = -1


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """One host, as a process on it sees it. Sizes in bytes; None: this system does not say."""

    name: str
    address: str
    """By which this host reaches the place where the ranks meet."""
    resolved: tuple[str, ...]
    """The addresses that the host's own name means to it."""
    interface: str | None = None
    """The network interface that has `address`."""
    python: str = sys.executable
    versions: Mapping[str, str] = field(default_factory=dict)
    drivers: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: str | None = None
    """The CUDA version that torch was built for; None: built for CPUs."""
    usable_gpus: int = 0
    gpus: tuple[str, ...] = ()
    cores: int = 1
    memory: int = 0
    memory_limit: int | None = None
    """Of the control group this process runs in."""
    shared_memory: int | None = None
    """Size of ``/dev/shm``."""
    open_files: int | None = None
    """The soft limit."""
    system: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HostFacts:
        """What JSON made of the fields."""
        lists = {name: tuple(values[name]) for name in ("resolved", "gpus")}
        return cls(**{**values, **lists})


def look(*, master: tuple[str, int] | None = None) -> HostFacts:
    """The facts of this host. ``master``: where the ranks meet."""
    import torch

    machine = hardware()
    address = _address_towards(*(master or ("127.0.0.1", 1)))
    return HostFacts(
        name=socket.gethostname(),
        address=address,
        resolved=_resolve(socket.gethostname()),
        interface=interface_of(address),
        versions=versions(),
        drivers=_drivers(),
        torch_cuda=torch.version.cuda,
        usable_gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        gpus=tuple(map(str, machine["gpus"])) if isinstance(machine["gpus"], list) else (),
        cores=int(str(machine["cores"])),
        memory=int(str(machine["memory"])),
        memory_limit=cgroup_memory(),
        shared_memory=_size_of("/dev/shm"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        system=f"{machine['system']}, {platform.machine()}",
    )


def cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The memory limit of this process's control group, the tightest of its parents' included (v2 and v1)."""
    folders = [root, root / "memory"]
    if own.exists():
        for line in own.read_text().splitlines():
            path = Path(line.split(":", 2)[2].lstrip("/"))
            folders += [base / part for base in (root, root / "memory") for part in (path, *path.parents)]
    limits = [
        int(text)
        for folder in folders
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdigit() and int(text) < 2**60
    ]
    return min(limits) if limits else None


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 ``address``; None where the system does not say."""
    return next((each.name for each in interfaces() if each.address == address), None)


def _address_towards(host: str, port: int) -> str:
    """This host's address on the route to ``host``. Sends nothing: UDP's connect only looks up the route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _resolve(name: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _drivers() -> dict[str, str]:
    """Of the kernel, and of the accelerators that have one."""
    found = {"kernel": platform.release()}
    nvidia = _read(Path("/proc/driver/nvidia/version"))
    if nvidia:
        found["nvidia"] = next((word for word in nvidia.split() if word[0].isdigit() and "." in word), "?")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        lines = asked.stdout.split()
        found["nvidia-smi"] = lines[0] if asked.returncode == 0 and lines else "does not answer"
    amd = _read(Path("/sys/module/amdgpu/version"))
    return {**found, "amdgpu": amd} if amd else found


def _size_of(folder: str) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
