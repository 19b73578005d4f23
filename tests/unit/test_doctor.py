"""What a host has is judged by stated rules, and each complaint says what would mend it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from distrib.cli import doctor
from distrib.cli.doctor_table import doctor_table, remedies
from distrib.doctor import disk, judge, network
from distrib.doctor.findings import Finding, Verdict
from distrib.doctor.host import GIB, HostFacts, cgroup_memory, interface_of
from distrib.world import World

GOOD = HostFacts(
    name="h1",
    address="10.0.0.1",
    resolved=("10.0.0.1",),
    interface="eth0",
    versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    drivers={"kernel": "6.1"},
    cores=8,
    memory=64 * GIB,
    shared_memory=32 * GIB,
    open_files=65536,
    system="Linux 6.1, x86_64",
)
OTHER = replace(GOOD, name="h2", address="10.0.0.2", resolved=("10.0.0.2",))


def verdicts(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings}


def complaints(findings: Sequence[Finding]) -> dict[str, str]:
    """Names and remedies of what is not well; each has one."""
    bad = [finding for finding in findings if finding.verdict in ("warn", "fail")]
    assert all(finding.remedy for finding in bad)
    return {finding.name: str(finding.remedy) for finding in bad}


def test_a_good_host_is_not_complained_about() -> None:
    """Everything in order: no warning, and a missing GPU is a note."""
    findings = [*judge.machine(GOOD, ranks=8), *judge.versions([GOOD, OTHER]), *judge.names([GOOD, OTHER])]
    assert set(verdicts(findings).values()) == {"ok", "note"}
    assert verdicts(findings)["GPUs"] == "note"


@pytest.mark.parametrize(
    ("change", "ranks", "name", "verdict", "remedy"),
    [
        ({"open_files": 1024}, 1, "open files", "warn", "ulimit -n"),
        ({"shared_memory": 64 * 2**20}, 1, "/dev/shm", "warn", "--shm-size"),
        ({"memory_limit": GIB}, 1, "memory", "warn", "limit"),
        ({}, 9, "cores", "warn", "launcher.num_processes=8"),
        ({"gpus": ("H100",)}, 1, "GPUs", "fail", "torch built for"),
        ({"gpus": ("H100",), "usable_gpus": 1, "torch_cuda": "12.8"}, 2, "GPUs", "fail", "num_processes=1"),
        ({"gpus": ("H100",), "usable_gpus": 1, "torch_cuda": "12.8"}, 1, "GPUs", "ok", None),
        ({"open_files": -1}, 1, "open files", "ok", None),
    ],
)
def test_a_host_that_lacks_something_is_told_what_to_do(
    change: dict[str, object], ranks: int, name: str, verdict: str, remedy: str | None
) -> None:
    """One rule at a time."""
    findings = list(judge.machine(replace(GOOD, **change), ranks=ranks))  # type: ignore[arg-type]
    assert verdicts(findings)[name] == verdict
    if remedy is not None:
        assert remedy in complaints(findings)[name]


def test_versions_that_differ_are_named_with_their_hosts() -> None:
    """torch must agree; another package is a warning, a driver a note; what is absent differs too."""
    odd = replace(OTHER, versions={"python": "3.11.7", "torch": "2.12.0"}, drivers={"kernel": "5.15"})
    findings = list(judge.versions([GOOD, odd]))
    found = verdicts(findings)
    assert (found["torch"], found["transformers"], found["kernel"]) == ("fail", "warn", "note")
    assert "2.13.0 on h1; 2.12.0 on h2" in [finding.seen for finding in findings]
    assert "5.23.0 on h1; not installed on h2" in [finding.seen for finding in findings]
    assert "python 3.11.7" in next(finding.seen for finding in findings if finding.name == "packages")


def test_a_name_that_means_the_loopback_interface_is_a_trap_between_hosts_only() -> None:
    """gloo would listen where no other host can connect; the variable that mends it is named."""
    trap = replace(OTHER, resolved=("127.0.1.1",))
    (good, bad) = judge.names([GOOD, trap])
    assert (good.verdict, bad.verdict) == ("ok", "warn")
    assert "GLOO_SOCKET_IFNAME=eth0" in str(bad.remedy)
    assert [finding.verdict for finding in judge.names([trap])] == ["ok"]
    assert verdicts(list(judge.names([GOOD, replace(OTHER, resolved=())])))["host name"] == "fail"


def test_connections_that_fail_are_named_by_direction() -> None:
    """Who could not reach whom, and why."""
    finding = judge.reach({"h1": {"10.0.0.2": "timed out"}}, hosts=[GOOD, OTHER])
    assert finding.verdict == "fail"
    assert "h1 to 10.0.0.2 (timed out)" in finding.seen
    assert judge.reach({}, hosts=[GOOD, OTHER]).seen == "all 2 directions"


def pair(first: int, second: int, bandwidth: float, *, skew: float = 0.0) -> network.Pair:
    return network.Pair(first=first, second=second, latency=1e-4, bandwidth=bandwidth, clock_skew=skew)


def test_a_slow_pair_of_hosts_and_a_clock_that_is_off_are_named() -> None:
    """Slower than half the median; more than a second apart."""
    hosts = ["h1", "h2", "h3"]
    pairs = [pair(0, 1, 1e9), pair(0, 2, 1e8), pair(1, 2, 1e9, skew=-7.0)]
    found = complaints(list(judge.speed(pairs, hosts=hosts)))
    assert "h1-h3" in found["bandwidth"]
    assert "chrony" in found["clocks"]
    assert not complaints(list(judge.speed([pair(0, 1, 1e9), pair(1, 2, 1e8)], hosts=["h1"] * 3)))


def test_a_directory_that_is_not_shared_fails_and_a_slow_or_full_disk_warns() -> None:
    """Checkpoints are written there by all ranks."""
    assert judge.shared({"h1": True, "h2": False}, folder="/runs").seen.startswith("h2 does not see")
    found = complaints(list(judge.disk({"h1": 1e9, "h2": 1e6}, {"h1": GIB, "h2": 500 * GIB})))
    assert set(found) == {"checkpoint speed", "free space"}


def test_pairs_are_taken_between_hosts_and_not_within() -> None:
    """One rank a host; all ranks of a single host; beyond a few hosts each with the next."""
    assert network.pairs_to_measure(["a", "a", "b", "b"]) == [(0, 2)]
    assert network.pairs_to_measure(["a", "a", "a"]) == [(0, 1), (0, 2), (1, 2)]
    assert network.pairs_to_measure([str(n) for n in range(100)])[:2] == [(0, 1), (1, 2)]
    assert len(network.pairs_to_measure([str(n) for n in range(100)])) == 99


def test_who_listens_is_reached_and_who_does_not_is_reported() -> None:
    """A real socket; and the same port after it is closed."""
    with network.listening("127.0.0.1") as port:
        assert network.unreachable([("127.0.0.1", port)]) == {}
    assert "refused" in network.unreachable([("127.0.0.1", port)])["127.0.0.1"]


def test_a_control_groups_limit_is_the_tightest_of_its_parents(tmp_path: Path) -> None:
    """Version 2: ``max`` is none; a limit above 2**60 is version 1's way to say so."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "a" / "b" / "memory.max").write_text(f"{8 * GIB}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    assert cgroup_memory(tmp_path, own) == 4 * GIB
    own.write_text("0::/\n")
    assert cgroup_memory(tmp_path, own) is None


def test_the_loopback_interface_is_found_by_its_address() -> None:
    """As gloo's variable wants it named."""
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_facts_survive_json() -> None:
    """What a rank sends is what rank 0 judges."""
    assert HostFacts.from_json(json.loads(json.dumps(asdict(GOOD)))) == GOOD


def test_disk_speed_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is removed, also where writing fails."""
    monkeypatch.setattr(disk, "BYTES", 2**20)
    assert disk.write_speed(tmp_path, "speed") > 0
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        disk.write_speed(tmp_path, "speed")
    assert list(tmp_path.iterdir()) == []


def test_one_rank_sees_its_own_file(tmp_path: Path) -> None:
    """A world of one needs no store."""
    assert disk.sees_rank_zeros_file(World(), tmp_path / "run")


def test_the_table_shows_every_check_and_then_what_to_do() -> None:
    """Areas together, failures first in the remedies, and the numbers at the end."""
    findings = [
        Finding(area="h1", name="cores", verdict="ok", seen="8 cores"),
        Finding(area="h1", name="GPUs", verdict="warn", seen="odd", remedy="look"),
        Finding(area="disk", name="shared directory", verdict="fail", seen="no", remedy="share it"),
        Finding(area="h1", name="memory", verdict="note", seen="some"),
    ]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(doctor_table(findings))
    console.print(remedies(findings))
    text = console.export_text()
    assert text.index("memory") < text.index("shared directory")
    assert text.index("fail  disk, shared directory: share it") < text.index("warn  h1, GPUs: look")
    assert "4 checks: 1 ok, 1 note, 1 warn, 1 fail" in text


def test_the_exit_code_is_1_where_a_check_failed_and_the_file_holds_all(tmp_path: Path) -> None:
    """A warning does not fail the command."""
    warn = Finding(area="h", name="cores", verdict="warn", seen="x", remedy="y")
    file = tmp_path / "doctor.json"
    assert doctor._tell([warn], file=file) == 0
    assert json.loads(file.read_text()) == [asdict(warn)]
    assert doctor._tell([warn, replace(warn, verdict="fail")], file=None) == 1


def test_doctor_needs_a_launcher_only() -> None:
    """No model, task or data is asked for; a misspelt key is refused all the same."""
    from distrib.errors import ConfigError

    config = doctor._compose(["launcher.num_processes=3"], config_dirs=[])
    assert config.launcher["num_processes"] == 3
    with pytest.raises(ConfigError, match="num_processes"):
        doctor._compose(["launcher.num_proceses=3"], config_dirs=[])


def test_own_host_name_is_read() -> None:
    """The facts of this host name it."""
    from distrib.doctor.host import look

    assert look().name == socket.gethostname()


def test_the_rank_whose_fault_it_is_says_why() -> None:
    """Those that only waited for it for half a minute do not; one that fails outweighs all that do not."""

    def found(verdict: Verdict, seen: str, *, is_consequence: bool = False) -> Finding:
        return Finding(
            area="engines", name="torch", verdict=verdict, seen=seen, is_consequence=is_consequence
        )

    waited = found("fail", "h1: wait timeout", is_consequence=True)
    cause = found("fail", "h2: no address for eth0")
    assert judge.decisive([waited, cause, found("ok", "h3")]) == cause
    assert judge.decisive([found("ok", "h3"), waited]) == waited
