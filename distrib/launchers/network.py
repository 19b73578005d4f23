"""Where the ranks of a job meet: a free port, on the interface that all its hosts share."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distrib.errors import LaunchError

LOOPBACK = "127.0.0.1"

SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891B
"""Linux's numbers for asking an interface's address and mask (netdevice(7))."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One IPv4 address of one host."""

    name: str
    address: str
    prefix: int
    """Bits of the address that name the network."""

    @property
    def network(self) -> str:
        """As ``10.77.0.0/24``."""
        return str(ipaddress.ip_interface(f"{self.address}/{self.prefix}").network)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network that all hosts of a job are in."""

    network: str
    addresses: tuple[str, ...]
    """One per host, in order; rank 0 is on the first."""
    names: tuple[str, ...]
    """What each host calls its interface."""

    def variables(self, node: int) -> dict[str, str]:
        """What tells gloo and NCCL on host ``node`` to use it."""
        return {"GLOO_SOCKET_IFNAME": self.names[node], "NCCL_SOCKET_IFNAME": self.names[node]}

    def describe(self, port: int) -> str:
        """For the user: where the ranks meet and why there."""
        names = ", ".join(dict.fromkeys(self.names))
        return f"{self.addresses[0]}:{port} over {names} ({self.network})"


def interfaces() -> list[Interface]:
    """This host's IPv4 addresses, one an interface, the loopback's last."""
    found = [each for _, name in socket.if_nameindex() if (each := _read(name)) is not None]
    return sorted(found, key=lambda each: each.address.startswith("127."))


def _read(name: str) -> Interface | None:
    """None for an interface without an IPv4 address."""
    if sys.platform != "linux":
        return Interface(name=name, address=LOOPBACK, prefix=8) if name.startswith("lo") else None
    import fcntl

    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        address, mask = (
            fcntl.ioctl(probe.fileno(), number, request)[20:24] for number in (SIOCGIFADDR, SIOCGIFNETMASK)
        )
        prefix = int.from_bytes(mask, "big").bit_count()
        return Interface(name=name, address=socket.inet_ntoa(address), prefix=prefix)
    return None


def links(hosts: Sequence[Sequence[Interface]], *, interface: str | None = None) -> list[Link]:
    """The networks that every host is in under an address of its own, best first.

    A bridge of containers has the same address on every host and is none. One host has its loopback
    interface. Raises `LaunchError` where there is none.

    Args:
        hosts: of each host, its addresses.
        interface: only what the first host calls so.
    """
    wanted = [each for each in hosts[0] if interface in (None, each.name)]
    if len(hosts) == 1:
        wanted = sorted(wanted, key=lambda each: not each.address.startswith("127."))
    found = [link for each in wanted if (link := _link(each.network, hosts)) is not None]
    if not found:
        seen = "; ".join(
            ", ".join(f"{each.name} {each.address}/{each.prefix}" for each in host) for host in hosts
        )
        asked = f" called {interface} on the first" if interface else ""
        raise LaunchError(f"the hosts share no network{asked}: {seen}. Set launcher.interface")
    return found


def _link(network: str, hosts: Sequence[Sequence[Interface]]) -> Link | None:
    inside = [next((each for each in host if each.network == network), None) for host in hosts]
    members = [each for each in inside if each is not None]
    if len(members) < len(hosts) or len({each.address for each in members}) < len(hosts):
        return None
    return Link(
        network=network,
        addresses=tuple(each.address for each in members),
        names=tuple(each.name for each in members),
    )


@contextlib.contextmanager
def reserved_port(port: int = 0, *, address: str = LOOPBACK) -> Iterator[socket.socket]:
    """A socket bound to ``address``, not yet listening: rank 0 will, on the same socket.

    So no other program can take the port in between, and two jobs on one host never meet.
    """
    with socket.socket() as bound:
        bound.bind((address, port))
        yield bound
