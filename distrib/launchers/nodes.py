"""The agents on all hosts of a job: brought up together, checked, and asked where the ranks can meet."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from distrib.errors import LaunchError
from distrib.launchers.cluster import Cluster, names
from distrib.launchers.hosts import Host
from distrib.launchers.messages import software
from distrib.launchers.network import Interface, Link, links
from distrib.launchers.node import Hello, Node

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A host whose agent runs and fits the job."""

    host: Host
    node: Node
    hello: Hello


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the ranks of a job meet."""

    link: Link
    port: int


def tell(text: str) -> None:
    """A line for the user."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def reached(cluster: Cluster, *, run_dir: Path, timeout: float) -> Iterator[list[Reached]]:
    """The first ``num_nodes`` hosts that answer and fit, in order; others of the list stand in for the rest.

    Raises `LaunchError` with the words of each host that does not, where too few are left.
    """
    with ExitStack() as stack, _marker(run_dir) as marker:
        try_one = partial(_try, cluster, stack=stack, marker=marker, timeout=timeout)
        found: list[Reached] = []
        refusals: list[LaunchError] = []
        left = list(cluster.hosts)
        while len(found) < cluster.num_nodes and left:
            missing = cluster.num_nodes - len(found)
            for answer in at_once(try_one, left[:missing]):
                (refusals if isinstance(answer, LaunchError) else found).append(answer)  # type: ignore[arg-type]
            del left[:missing]
        if len(found) < cluster.num_nodes:
            raise LaunchError("\n".join(map(str, refusals)))
        for refusal in refusals:
            tell(f"notice: {refusal}; {names([found[-1].host])} stands in")
        yield sorted(found, key=lambda each: cluster.hosts.index(each.host))


def at_once(call: Callable[[Host], T], hosts: Sequence[Host]) -> list[T]:
    """``call`` of every host, side by side."""
    with ThreadPoolExecutor(min(len(hosts), 64)) as pool:
        return list(pool.map(call, hosts))


def _try(
    cluster: Cluster, host: Host, *, stack: ExitStack, marker: Path, timeout: float
) -> Reached | LaunchError:
    node = stack.enter_context(Node(host.name, cluster.agent(host), screen=tell))
    try:
        hello = node.hello(timeout=timeout)
        _check_software(host, hello)
        _check_folders(host, node, marker)
    except LaunchError as error:
        node.close()
        return error
    return Reached(host=host, node=node, hello=hello)


def _check_software(host: Host, hello: Hello) -> None:
    for name, ours in software().items():
        theirs = hello.software.get(name, "absent")
        if theirs != ours:
            raise LaunchError(
                f"host {host.name}: has {name} {theirs}, and this host {ours}; install the same on both "
                "(launcher.python names the interpreter)"
            )


def _check_folders(host: Host, node: Node, marker: Path) -> None:
    answer = node.ask({"look": {"cwd": str(Path.cwd()), "file": str(marker), "text": marker.read_text()}})
    absent = Path.cwd() if not answer["cwd"] else marker.parents[1] if not answer["file"] else None
    if absent is not None:
        raise LaunchError(
            f"host {host.name}: does not see {absent}; the working directory and run_dir have to be "
            "on a file system that all hosts share"
        )


@contextmanager
def _marker(run_dir: Path) -> Iterator[Path]:
    """A file with words nobody else has written, to look for from the other hosts."""
    name = secrets.token_hex(6)
    marker = run_dir / "logs" / f".shared-{name}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(name)
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def meeting(hosts: Sequence[Reached], *, interface: str | None, keep: bool) -> Meeting:
    """The best network whose first host all the others reach, and a free port there; told to the user.

    Raises `LaunchError` saying which host could not reach which address.

    Args:
        hosts: of the job; rank 0 is on the first.
        interface: the only one to try, by its name on the first host.
        keep: whether the agent keeps the port for rank 0, which inherits it.
    """
    refusals = []
    for link in links(_addresses(hosts), interface=interface):
        link = _spread(link, len(hosts))
        answer = hosts[0].node.ask({"bind": link.addresses[0]})
        port = answer.get("port", 0)
        problems = _unreachable(hosts, link, port) if port else [f"{hosts[0].host.name}: {answer['error']}"]
        if not keep or problems:
            hosts[0].node.say({"free": 1})
        if not problems:
            tell(f"ranks meet at    {link.describe(port)}")
            return Meeting(link=link, port=port)
        refusals += problems
    raise LaunchError(
        f"the hosts do not reach each other: {'; '.join(refusals)}. A firewall between them, or an interface "
        "that does not lead there: open all TCP ports between the job's hosts, or set launcher.interface"
    )


def _addresses(hosts: Sequence[Reached]) -> list[list[Interface]]:
    """Of every host; of one where several names mean the same machine."""
    if len({each.hello.machine for each in hosts}) == 1:
        return [hosts[0].hello.interfaces]
    return [each.hello.interfaces for each in hosts]


def _spread(link: Link, count: int) -> Link:
    times = count if len(link.addresses) == 1 else 1
    return Link(network=link.network, addresses=link.addresses * times, names=link.names * times)


def _unreachable(hosts: Sequence[Reached], link: Link, port: int) -> list[str]:
    where = [link.addresses[0], port]

    def problem(each: Reached) -> str | None:
        error = each.node.ask({"reach": where}).get("error")
        return f"{each.host.name} tried {where[0]}:{port} over {link.network}: {error}" if error else None

    with ThreadPoolExecutor(min(len(hosts), 64)) as pool:
        return [words for words in pool.map(problem, hosts[1:]) if words]
