"""All checks, on all ranks together; rank 0 knows the findings at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.doctor import disk, judge
from distrib.doctor.engines import PROBES, is_consequence, try_engine, try_torch
from distrib.doctor.findings import Finding, failed
from distrib.doctor.host import HostFacts, look
from distrib.doctor.network import Pair, exchange, leave, listening, measure, pairs_to_measure, unreachable
from distrib.errors import DistribError

if TYPE_CHECKING:
    from distrib.world import World


def examine(world: World, folder: Path) -> list[Finding]:
    """Every check, in the order in which one that fails explains the next.

    Args:
        world: in which the ranks have met.
        folder: where checkpoints would go; what is written there is removed.

    Every rank calls it. The findings are whole on rank 0.
    """
    findings: list[Finding] = [_met(world)]
    facts = look(master=_master(world))
    hosts = [HostFacts.from_json(each) for each in exchange(world, "facts", asdict(facts))]
    unique = judge.unique(hosts)
    ranks = Counter(host.name for host in hosts)
    findings += judge.versions(unique)
    for host in unique:
        findings += judge.machine(host, ranks=ranks[host.name])
    names = list(judge.names(unique))
    findings += names
    connections = _connections(world, facts, hosts)
    findings.append(connections)
    findings += _disk(world, folder, facts.name)
    # Engines are not asked to take a name that means nothing: one of them crashes on it.
    if not failed([connections, *names]):
        findings += _talking(world, [host.name for host in hosts])
    leave(world)
    return findings


def _met(world: World) -> Finding:
    place = f"{world.master_address}:{world.master_port}" if world.size > 1 else "nobody to meet"
    return Finding(
        area="network",
        name="rendezvous",
        verdict="ok",
        seen=f"{world.size} of {world.size} ranks met at {place}",
    )


def _connections(world: World, facts: HostFacts, hosts: Sequence[HostFacts]) -> Finding:
    """Every host connects to every other, from the address it would be known by."""
    with listening(facts.address) as port:
        doors = exchange(world, "doors", [facts.name, facts.address, port])
        others = {name: (address, number) for name, address, number in doors if name != facts.name}
        lost = unreachable(list(others.values()))
        failures = exchange(world, "unreachable", lost)
    by_host = {host.name: lost for host, lost in zip(hosts, failures, strict=True) if lost}
    return judge.reach(by_host, hosts=judge.unique(hosts))


def _disk(world: World, folder: Path, name: str) -> Iterator[Finding]:
    sees = exchange(world, "sees", [name, disk.sees_rank_zeros_file(world, folder)])
    yield judge.shared(dict(sorted(sees, reverse=True)), folder=str(folder.parent.parent))
    try:
        speed = disk.write_speed(folder, f"speed-{world.rank}") if world.local_rank == 0 else None
        report = [name, speed, disk.free_bytes(folder), None]
    except OSError as error:
        report = [name, None, 0, f"{name}: {error}"]
    reports = exchange(world, "disk", report)
    errors = [error for *_, error in reports if error]
    if errors:
        remedy = "set run_dir to a directory that every rank may write to"
        yield Finding(area="disk", name="checkpoint speed", verdict="fail", seen=errors[0], remedy=remedy)
    else:
        speeds = {host: speed for host, speed, _, _ in reports if speed}
        yield from judge.disk(speeds, {host: free for host, _, free, _ in reports})


def _talking(world: World, names: Sequence[str]) -> Iterator[Finding]:
    """What needs a process group: speed between pairs, and every engine's all-reduce."""
    import torch.distributed as dist

    group = _agreed(world, "group", lambda: _open_group(world, names[world.rank]))
    if group.verdict == "fail":
        yield group
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    try:
        yield _agreed(world, "torch", lambda: try_torch(world))
        measured = [measure(world, pair) for pair in pairs_to_measure(names)]
        everyone = exchange(world, "pairs", [asdict(pair) for pair in measured if pair is not None])
        yield from judge.speed([Pair(**pair) for pairs in everyone for pair in pairs], hosts=names)
    finally:
        dist.destroy_process_group()
    for package in PROBES:
        yield _agreed(world, package, lambda package=package: try_engine(package, world))  # type: ignore[misc]


def _agreed(world: World, name: str, attempt: Callable[[], Finding]) -> Finding:
    """The finding that counts of all ranks': it has to work on each."""
    return judge.decisive([Finding(**each) for each in exchange(world, f"engine {name}", asdict(attempt()))])


def _open_group(world: World, host: str) -> Finding:
    from distrib.rendezvous import process_group

    try:
        process_group(world)
    except (DistribError, RuntimeError) as error:
        return Finding(
            area="engines",
            name="torch",
            verdict="fail",
            seen=f"{host}: {str(error).splitlines()[0]}",
            remedy="set GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) on each host to its own name of the "
            "interface that all share, or unset it",
            is_consequence=is_consequence(error),
        )
    return Finding(area="engines", name="torch", verdict="ok", seen="a process group")


def _master(world: World) -> tuple[str, int] | None:
    if world.master_address is None or world.master_port is None or world.local_size == world.size:
        return None
    return world.master_address, world.master_port
