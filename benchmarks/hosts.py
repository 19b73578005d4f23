"""Hosts made of network namespaces on this machine, joined by links of a given rate. Needs root.

Each host has an address of its own on one switch, and a token bucket at both ends of its cable: what it
sends and what it is sent are held to the rate apart from each other. The switch has no way out.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.common import interrupted_by_sigterm

INTERFACE = "eth0"
MTU = 1500


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of them."""

    namespace: str
    address: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *argv]


@contextmanager
def hosts(count: int, *, rate: str) -> Iterator[list[Host]]:
    """``count`` hosts on links of ``rate``, as tc writes it (100mbit); gone afterwards.

    `interrupted_by_sigterm` in between, so that neither hosts nor what runs on them are left.
    """
    prefix = f"bench{os.getpid()}"
    switch = f"{prefix}-switch"
    made = [Host(namespace=f"{prefix}-{n}", address=f"10.78.0.{n + 1}") for n in range(count)]
    names = [switch, *(host.namespace for host in made)]
    with interrupted_by_sigterm():
        try:
            for name in names:
                _do("ip", "netns", "add", name)
                _do("ip", "-n", name, "link", "set", "lo", "up")
            _do("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            _do("ip", "-n", switch, "link", "set", "br0", "up")
            for number, host in enumerate(made):
                _plug(host, switch, port=f"port{number}", rate=rate)
            yield made
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _plug(host: Host, switch: str, *, port: str, rate: str) -> None:
    ends = ["type", "veth", "peer", "name", port, "netns", switch]
    _do("ip", "link", "add", INTERFACE, "netns", host.namespace, "mtu", str(MTU), *ends)
    _do("ip", "-n", switch, "link", "set", port, "mtu", str(MTU), "master", "br0", "up")
    _do("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    _do("ip", "-n", host.namespace, "link", "set", INTERFACE, "up")
    bucket = ["root", "tbf", "rate", rate, "burst", "128k", "latency", "50ms"]
    for namespace, device in ((host.namespace, INTERFACE), (switch, port)):
        _do("tc", "-n", namespace, "qdisc", "replace", "dev", device, *bucket)


def _do(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
