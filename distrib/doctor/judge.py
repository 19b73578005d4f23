"""From facts to findings: pure, so that each rule can be tried on facts that this machine does not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from distrib.doctor.findings import Finding, Verdict
from distrib.doctor.host import GIB, HostFacts
from distrib.doctor.network import Pair

MUST_AGREE = ("distrib", "torch", "python")
"""Packages that must be the same everywhere: ranks with different ones compute or talk differently."""
ENOUGH_FILES = 4096
SLOW_SHARE = 0.5
"""Of the median bandwidth: a slower pair is named."""
SKEW_SECONDS = 1.0
SLOW_DISK = 50e6
LOW_DISK = 5 * GIB


def versions(hosts: Sequence[HostFacts]) -> Iterator[Finding]:
    """What is the same everywhere in one line; then one line for each that differs."""
    packages = _by_name([(host.name, host.versions) for host in hosts], absent="not installed")
    drivers = _by_name([(host.name, host.drivers) for host in hosts], absent="none")
    yield _agreeing("packages", packages)
    yield _agreeing("drivers", drivers)
    for name, found in packages.items():
        if len(set(found.values())) > 1:
            remedy = f"install the same {name} on every host: what ranks compute and send depends on it"
            worst: Verdict = "fail" if name in MUST_AGREE else "warn"
            yield _differing(name, found, verdict=worst, remedy=remedy)
    for name, found in drivers.items():
        if len(set(found.values())) > 1:
            yield _differing(name, found, verdict="note", remedy=None)


def machine(host: HostFacts, *, ranks: int) -> Iterator[Finding]:
    """What one host has, and whether that is enough for so many ranks."""
    yield _cores(host, ranks)
    yield _gpus(host, ranks)
    yield _memory(host)
    yield _shared_memory(host)
    yield _open_files(host)


def names(hosts: Sequence[HostFacts]) -> Iterator[Finding]:
    """Whether each host's name means an address that others can use: gloo and NCCL go by it."""
    for host in hosts:
        seen = f"{host.name} is {', '.join(host.resolved) or 'unknown'}; "
        seen += f"on {host.interface or 'an unnamed interface'} with {host.address}"
        alone = len(hosts) == 1
        if not host.resolved and not alone:
            remedy = f"add `{host.address} {host.name}` to /etc/hosts on every host, or to DNS"
            yield Finding(area="network", name="host name", verdict="fail", seen=seen, remedy=remedy)
        elif not alone and all(address.startswith(("127.", "::1")) for address in host.resolved):
            remedy = (
                f"on {host.name} its own name means the loopback interface, at which no other host answers: "
                f"export GLOO_SOCKET_IFNAME={host.interface or '<interface>'}, or mend its /etc/hosts"
            )
            yield Finding(area="network", name="host name", verdict="warn", seen=seen, remedy=remedy)
        else:
            yield Finding(area="network", name="host name", verdict="ok", seen=seen)


def reach(failures: Mapping[str, Mapping[str, str]], *, hosts: Sequence[HostFacts]) -> Finding:
    """Who could not connect to whom: ``failures`` by host, then by address."""
    number = len(hosts) * (len(hosts) - 1)
    lost = [
        f"{name} to {address} ({why})" for name, them in failures.items() for address, why in them.items()
    ]
    if not lost:
        seen = f"all {number} directions" if number else "one host"
        return Finding(area="network", name="connections", verdict="ok", seen=seen)
    return Finding(
        area="network",
        name="connections",
        verdict="fail",
        seen="; ".join(lost[:4]) + (f"; and {len(lost) - 4} more" if len(lost) > 4 else ""),
        remedy="a firewall between them, or an interface that does not lead there: open all TCP ports "
        "between the job's hosts",
    )


def decisive(findings: Sequence[Finding]) -> Finding:
    """Of what all ranks found of one thing: the worst, and of those a cause before a consequence."""
    order = ("fail", "warn", "note", "ok")
    return min(findings, key=lambda finding: (order.index(finding.verdict), finding.is_consequence))


def speed(pairs: Sequence[Pair], *, hosts: Sequence[str]) -> Iterator[Finding]:
    """Latency, bandwidth and clocks over the pairs that were measured; slow pairs by name."""
    if not pairs:
        return
    between = "hosts" if len(set(hosts)) > 1 else "processes of this host"
    by_speed = sorted(pairs, key=lambda pair: pair.bandwidth)
    slowest, median = by_speed[0], by_speed[len(pairs) // 2].bandwidth
    middle = f"{_rate(median)}, {_micro(_median_latency(pairs))} one way"
    seen = f"{_count(len(pairs), 'pair')} of {between}: {middle}"
    if len(pairs) > 1:
        seen += f"; slowest {_pair(slowest, hosts)} {_rate(slowest.bandwidth)}"
    slow = [pair for pair in pairs if pair.bandwidth < SLOW_SHARE * median]
    if slow and len(set(hosts)) > 1:
        worst = ", ".join(_pair(pair, hosts) for pair in slow[:4])
        remedy = f"look at the links, switches and other jobs of {worst}: every rank waits for the slowest"
        yield Finding(area="network", name="bandwidth", verdict="warn", seen=seen, remedy=remedy)
    else:
        yield Finding(area="network", name="bandwidth", verdict="ok", seen=seen)
    if len(set(hosts)) > 1:
        yield _clocks(pairs, hosts)


def disk(speeds: Mapping[str, float], free: Mapping[str, int]) -> Iterator[Finding]:
    """Bytes a second to disk and free bytes where checkpoints go, by host."""
    slowest, least = min(speeds, key=lambda host: speeds[host]), min(free, key=lambda host: free[host])
    verdict: Verdict = "warn" if speeds[slowest] < SLOW_DISK else "ok"
    remedy = "put run_dir on a faster disk, or save less often (checkpoint.save_every)"
    yield Finding(
        area="disk",
        name="checkpoint speed",
        verdict=verdict,
        seen=f"64 MiB written and flushed at {_rate(speeds[slowest])}{_at(slowest, speeds)}",
        remedy=remedy if verdict == "warn" else None,
    )
    short: Verdict = "warn" if free[least] < LOW_DISK else "ok"
    yield Finding(
        area="disk",
        name="free space",
        verdict=short,
        seen=f"{_size(free[least])}{_at(least, free)}",
        remedy="free some, or lower checkpoint.keep_last: a checkpoint of AdamW is 12 bytes a parameter"
        if short == "warn"
        else None,
    )


def shared(sees: Mapping[str, bool], *, folder: str) -> Finding:
    """Whether every host sees what rank 0 writes."""
    blind = [host for host, seen in sees.items() if not seen]
    if not blind:
        seen = (
            f"{_count(len(sees), 'host')} see{'s' if len(sees) == 1 else ''} what rank 0 writes to {folder}"
        )
        return Finding(area="disk", name="shared directory", verdict="ok", seen=seen)
    return Finding(
        area="disk",
        name="shared directory",
        verdict="fail",
        seen=f"{', '.join(blind)} does not see what rank 0 writes to {folder}",
        remedy="start from a directory that every host mounts at the same path, or set run_dir to one",
    )


def _by_name(facts: Sequence[tuple[str, Mapping[str, str]]], *, absent: str) -> dict[str, dict[str, str]]:
    """For each name, what each host has of it."""
    names = dict.fromkeys(name for _, values in facts for name in values)
    return {name: {host: values.get(name, absent) for host, values in facts} for name in names}


def _agreeing(name: str, found: Mapping[str, Mapping[str, str]]) -> Finding:
    same = {each: values for each, values in found.items() if len(set(values.values())) == 1}
    seen = ", ".join(f"{each} {next(iter(values.values()))}" for each, values in same.items())
    return Finding(area="versions", name=name, verdict="ok", seen=seen or "none the same on all hosts")


def _differing(name: str, found: Mapping[str, str], *, verdict: Verdict, remedy: str | None) -> Finding:
    groups: dict[str, list[str]] = {}
    for host, value in found.items():
        groups.setdefault(value, []).append(host)
    seen = "; ".join(f"{value} on {', '.join(hosts)}" for value, hosts in groups.items())
    return Finding(area="versions", name=name, verdict=verdict, seen=seen, remedy=remedy)


def _cores(host: HostFacts, ranks: int) -> Finding:
    seen = f"{_count(host.cores, 'core')} for {_count(ranks, 'rank')}"
    if ranks > host.cores and not host.usable_gpus:
        remedy = f"ranks share cores and slow each other down: at most launcher.num_processes={host.cores}"
        return Finding(area=host.name, name="cores", verdict="warn", seen=seen, remedy=remedy)
    return Finding(area=host.name, name="cores", verdict="ok", seen=seen)


def _gpus(host: HostFacts, ranks: int) -> Finding:
    built = f"torch built for CUDA {host.torch_cuda}" if host.torch_cuda else "torch built for CPUs"
    if not host.gpus and not host.usable_gpus:
        return Finding(area=host.name, name="GPUs", verdict="note", seen=f"none; {built}")
    seen = f"{host.usable_gpus} usable of {len(host.gpus) or host.usable_gpus}; {built}"
    if not host.usable_gpus:
        remedy = "install a torch built for this driver's CUDA (pytorch.org/get-started), or see nvidia-smi"
        return Finding(area=host.name, name="GPUs", verdict="fail", seen=seen, remedy=remedy)
    if ranks > host.usable_gpus:
        remedy = f"one rank per GPU: launcher.num_processes={host.usable_gpus}"
        return Finding(area=host.name, name="GPUs", verdict="fail", seen=seen, remedy=remedy)
    return Finding(area=host.name, name="GPUs", verdict="ok", seen=seen)


def _memory(host: HostFacts) -> Finding:
    limit = host.memory_limit
    seen = _size(host.memory)
    if limit is not None and limit < host.memory:
        seen = f"{_size(limit)} allowed by the control group, of {seen}"
    if min(limit or host.memory, host.memory) < 2 * GIB:
        remedy = "a rank needs about 1 GiB before any model: raise the container's or the scheduler's limit"
        return Finding(area=host.name, name="memory", verdict="warn", seen=seen, remedy=remedy)
    return Finding(area=host.name, name="memory", verdict="ok", seen=seen)


def _shared_memory(host: HostFacts) -> Finding:
    if host.shared_memory is None:
        return Finding(area=host.name, name="/dev/shm", verdict="note", seen="this system has none")
    seen = _size(host.shared_memory)
    if host.shared_memory < GIB:
        remedy = "NCCL and loaders put buffers there: `docker run --shm-size=8g`, or remount it larger"
        return Finding(area=host.name, name="/dev/shm", verdict="warn", seen=seen, remedy=remedy)
    return Finding(area=host.name, name="/dev/shm", verdict="ok", seen=seen)


def _open_files(host: HostFacts) -> Finding:
    unlimited = host.open_files is None or host.open_files < 0
    seen = "unlimited" if unlimited else str(host.open_files)
    if host.open_files is not None and 0 <= host.open_files < ENOUGH_FILES:
        remedy = "each pair of ranks keeps connections open: `ulimit -n 65536` before the start"
        return Finding(area=host.name, name="open files", verdict="warn", seen=seen, remedy=remedy)
    return Finding(area=host.name, name="open files", verdict="ok", seen=seen)


def _clocks(pairs: Sequence[Pair], hosts: Sequence[str]) -> Finding:
    worst = max(pairs, key=lambda pair: abs(pair.clock_skew))
    seen = f"at most {abs(worst.clock_skew) * 1e3:.1f} ms apart ({_pair(worst, hosts)})"
    if abs(worst.clock_skew) > SKEW_SECONDS:
        remedy = "run chrony or ntpd on every host: logs, file times and certificates go by the clock"
        return Finding(area="network", name="clocks", verdict="warn", seen=seen, remedy=remedy)
    return Finding(area="network", name="clocks", verdict="ok", seen=seen)


def _pair(pair: Pair, hosts: Sequence[str]) -> str:
    if hosts[pair.first] == hosts[pair.second]:
        return f"ranks {pair.first}-{pair.second}"
    return f"{hosts[pair.first]}-{hosts[pair.second]}"


def _median_latency(pairs: Sequence[Pair]) -> float:
    return sorted(pair.latency for pair in pairs)[len(pairs) // 2]


def _at(host: str, values: Mapping[str, object]) -> str:
    return f", the least on {host}" if len(values) > 1 else ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"


def _rate(bytes_a_second: float) -> str:
    return f"{bytes_a_second / 1e9:.2f} GB/s" if bytes_a_second >= 1e9 else f"{bytes_a_second / 1e6:.0f} MB/s"


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def unique(hosts: Iterable[HostFacts]) -> list[HostFacts]:
    """One of each name, in order of rank."""
    return list({host.name: host for host in reversed(list(hosts))}.values())[::-1]
