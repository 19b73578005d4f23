"""Real hosts made of namespaces: every launcher trains over four of them, and breaks well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from drills import DRILLS, LAUNCHERS, ROOT, run_drill, unbroken
from hosts import Hosts, hosts, missing

REASON = missing("mpirun")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

OVER_HOSTS = [launcher for launcher in LAUNCHERS if launcher != "local"]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    with hosts(tmp_path_factory.mktemp("cluster") / "net", count=4, variables=variables) as four:
        yield four


@pytest.fixture(autouse=True)
def hosts_last(up: Hosts, lasting_processes: set[int]) -> Iterator[None]:
    """A host that a drill has taken the power from and started again is no leak."""
    yield
    lasting_processes.update(host.unshare.pid for host in up.all)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    return unbroken(tmp_path_factory.mktemp("unbroken") / "run")


def train(up: Hosts, folder: Path, *settings: str, host: str = "h1") -> subprocess.CompletedProcess[str]:
    """``distrib train`` on a host."""
    words = ["-m", "distrib", "train", "experiment=tiny", f"run_dir={folder}/run", *settings]
    command = up[host].inside(sys.executable, *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize("launcher", OVER_HOSTS)
def test_four_hosts_give_the_one_process_run(
    up: Hosts, expected: list[float], launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses as one process, over the network that the hosts share; nothing is left on any."""
    monkeypatch.chdir(tmp_path)
    strategy = "horovod" if launcher == "horovodrun" else "ddp"
    done = train(
        up,
        tmp_path,
        f"strategy={strategy}",
        f"train.steps={len(expected)}",
        f"launcher={launcher}",
        f"launcher.hosts={up.hosts_file()}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ranks meet at    {up['h1'].address}:" in done.stderr
    assert "over eth0" in done.stderr
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "lr" in line]
    assert losses == pytest.approx(expected, abs=1e-5, rel=0)
    assert [process for host in up.all for process in host.processes()] == []


@pytest.mark.parametrize("name", DRILLS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_broken_job_comes_back_or_ends_clean(
    up: Hosts,
    expected: list[float],
    launcher: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each drill once: back from the last checkpoint with the unbroken run's losses, no process left."""
    if launcher == "local" and name.startswith("host"):
        pytest.skip("the local launcher has one host")
    monkeypatch.chdir(tmp_path)
    verdict = run_drill(up, tmp_path / "drill", launcher=launcher, name=name, expected=expected)
    assert verdict.ok, verdict


def test_a_host_with_other_sources_is_refused(
    up: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher has a line more than the hosts: both versions are named and nothing is started."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["cp", "-r", str(ROOT / "distrib"), str(ROOT / "conf"), str(tmp_path)], check=True)
    with (tmp_path / "distrib" / "metrics.py").open("a") as file:
        file.write("# another line\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = train(up, tmp_path, "strategy=ddp", "launcher=ssh", f"launcher.hosts={up.hosts_file(count=2)}")
    assert done.returncode == 1
    assert "host h2: has distrib" in done.stderr
    assert not list((tmp_path / "run" / "logs").glob("rank-*"))
