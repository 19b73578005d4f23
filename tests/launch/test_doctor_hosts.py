"""``distrib doctor`` over real hosts made of namespaces: what differs on one of them is found and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Host, Hosts, hosts, missing, run

REASON = missing("iptables")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that every host looks for packages in first."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[Hosts]:
    variables = {"PYTHONPATH": f"{packages}:{ROOT}", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    with hosts(tmp_path_factory.mktemp("doctor") / "net", count=3, variables=variables) as three:
        yield three


@pytest.fixture(autouse=True)
def place(up: Hosts, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory that nothing is left in, and no process on any host."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{packages}:{ROOT}")
    yield
    assert [process for host in up.all for process in host.processes()] == []
    assert not (tmp_path / "runs").exists()


def on(host: Host, script: str) -> None:
    run(*host.inside("bash", "-euc", script))


def doctor(up: Hosts, *settings: str, launcher: str = "ssh") -> subprocess.CompletedProcess[str]:
    """On h1; by a launcher, findings in ``doctor.json``."""
    words = ["doctor", "--json", "doctor.json", f"launcher={launcher}", f"launcher.hosts={up.hosts_file()}"]
    words += ["launcher.num_processes=1", *settings]
    command = up["h1"].inside(sys.executable, "-m", "distrib", *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def under_torchrun(up: Hosts) -> subprocess.CompletedProcess[str]:
    """The same where nobody of ours has looked at the hosts before: one torchrun on each, by hand."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "3", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", up["h1"].address, "--master-port", "29511"]
    words = ["-m", "distrib", "doctor", "--json", "doctor.json"]
    started = [
        subprocess.Popen(
            host.inside(*torchrun, "--node-rank", str(node), *words),
            env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, host in enumerate(up.all)
    ]
    (out, err), *_ = [process.communicate(timeout=150) for process in started]
    return subprocess.CompletedProcess(torchrun, started[0].returncode, out, err)


def found(area: str, name: str) -> dict[str, Any]:
    """One finding of the last command."""
    findings = json.loads(Path("doctor.json").read_text())
    (one,) = [each for each in findings if (each["area"], each["name"]) == (area, name)]
    return dict(one)


@pytest.mark.parametrize("launcher", ["ssh", "torchrun", "mpirun"])
def test_hosts_that_are_alike_pass(up: Hosts, launcher: str) -> None:
    """Every pair connects, every host sees one directory, engines add up over all three."""
    done = doctor(up, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found("network", "rendezvous")["seen"].startswith(f"3 of 3 ranks met at {up['h1'].address}:")
    assert found("network", "connections")["seen"] == "all 6 directions"
    assert "3 pairs of hosts" in found("network", "bandwidth")["seen"]
    assert found("disk", "shared directory")["seen"].startswith("3 hosts see what rank 0 writes to")
    assert "3 ranks summed 4 MiB" in found("engines", "torch")["seen"]


def test_another_torch_is_named(up: Hosts, packages: Path, tmp_path: Path) -> None:
    """By the launcher before it starts a rank, and in the table under somebody else's."""
    other = tmp_path / "other"
    (other / "torch-9.9.9.dist-info").mkdir(parents=True)
    (other / "torch-9.9.9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.9.9\n")
    on(up["h3"], f"mount --bind {other} {packages}")
    try:
        refused, told = doctor(up), under_torchrun(up)
    finally:
        on(up["h3"], f"umount {packages}")
    assert refused.returncode == told.returncode == 1
    assert "host h3: has torch 9.9.9, and this host " in refused.stderr
    assert "; install the same on both" in refused.stderr
    assert found("versions", "torch")["seen"].endswith(" on h1, h2; 9.9.9 on h3")
    assert "fail  versions, torch: install the same torch on every host" in told.stdout


def test_a_directory_that_is_not_shared_is_named(up: Hosts, tmp_path: Path) -> None:
    """As above; nothing is left in the host's own directory either."""
    on(up["h2"], f"mount -t tmpfs tmpfs {tmp_path}")
    try:
        refused, told = doctor(up), under_torchrun(up)
        on(up["h2"], f'test -z "$(ls {tmp_path})"')
    finally:
        on(up["h2"], f"umount {tmp_path}")
    assert refused.returncode == told.returncode == 1
    assert f"host h2: does not see {tmp_path}" in refused.stderr
    assert found("disk", "shared directory")["seen"].startswith("h2 does not see what rank 0 writes to ")
    assert "fail  disk, shared directory: start from a directory that every host mounts" in told.stdout


def test_a_firewall_between_two_hosts_is_named(up: Hosts) -> None:
    """Ranks meet on h1, but h3 lets nobody in: both directions into it, and what to open."""
    rule = "INPUT -i eth0 -p tcp --dport 1024: --syn -j REJECT --reject-with tcp-reset"
    on(up["h3"], f"iptables -A {rule}")
    try:
        done = doctor(up)
    finally:
        on(up["h3"], f"iptables -D {rule}")
    assert done.returncode == 1
    lost = found("network", "connections")
    assert lost["verdict"] == "fail"
    for host in ("h1", "h2"):
        assert f"{host} to {up['h3'].address} ([Errno 111] Connection refused)" in lost["seen"]
    assert "fail  network, connections: a firewall between them" in done.stdout


def test_a_host_that_does_not_know_its_own_name_is_named(up: Hosts, tmp_path: Path) -> None:
    """Before an engine crashes on it, with the line for /etc/hosts."""
    known = (up.folder / "etc-hosts").read_text().splitlines(keepends=True)
    (tmp_path / "etc-hosts").write_text("".join(line for line in known if "h3" not in line))
    on(up["h3"], f"mount --bind {tmp_path}/etc-hosts /etc/hosts")
    try:
        done = doctor(up)
    finally:
        on(up["h3"], "umount /etc/hosts")
    assert done.returncode == 1
    assert "h3 is unknown; on eth0 with" in done.stdout
    assert f"add `{up['h3'].address} h3` to /etc/hosts on every host" in done.stdout


def test_interfaces_may_have_other_names(up: Hosts) -> None:
    """What the hosts share is a network, whatever each calls its card."""
    host = up["h2"]

    def rename(before: str, after: str) -> None:
        on(
            host,
            f"ip link set {before} down; ip link set {before} name {after}; ip link set {after} up; "
            f"ip addr replace {host.address}/24 dev {after}",
        )

    rename("eth0", "lan7")
    try:
        done, refused, told = doctor(up), doctor(up, launcher="horovodrun"), under_torchrun(up)
    finally:
        rename("lan7", "eth0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over eth0, lan7" in done.stderr
    assert f"on lan7 with {host.address}" in done.stdout
    assert "eth0 on h1, lan7 on h2, eth0 on h3: choose launcher=ssh" in refused.stderr
    assert told.returncode == 1
    assert found("engines", "torch")["seen"].startswith("h2: rank 1: h2 has no interface called eth0")
    assert "GLOO_SOCKET_IFNAME" in told.stdout
