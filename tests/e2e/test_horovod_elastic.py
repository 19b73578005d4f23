"""Horovod's elastic launcher for real: a worker is killed, the job goes on, and a new one is taken in.

Two names of the loopback interface stand for two hosts, because Horovod gives up a whole host when one
of its workers dies.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import LIMIT_SECONDS, command, distrib, losses, start_process, steps, wait_until
from safetensors.torch import load_file

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

TINY = ("experiment=tiny", "precision=fp64", "train.steps=100000", "train.log_every=1")
HOSTS = ("localhost", "127.0.0.1")


@contextmanager
def elastic_job(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``horovodrun`` with one worker on each host, which stays out for one or two seconds when it dies."""
    script = folder / "hosts"
    launcher = shutil.which("horovodrun", path=str(Path(sys.executable).parent))
    assert launcher, "horovodrun is not installed: make horovod"
    options = ["--gloo", "-np", "1", "--min-np", "1", "--max-np", "2", "--network-interfaces", "lo"]
    options += ["--blacklist-cooldown-range", "1", "2", "--host-discovery-script", str(script)]
    prefix = [launcher, *options, sys.executable]
    process = start_process(command("train", *TINY, *arguments, prefix=prefix), cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            process.communicate()


def name_hosts(folder: Path, *hosts: str) -> None:
    """Makes these the hosts that Horovod's driver finds when it asks the next time, a second later."""
    draft = folder / "hosts.new"
    draft.write_text("#!/bin/sh\n" + "".join(f"echo {host}:1\n" for host in hosts))
    draft.chmod(0o755)
    draft.replace(folder / "hosts")


def workers(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The processes that train, by the host they count as."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[1:3] == ["-m", "distrib"]:
            found[child.environ()["HOROVOD_HOSTNAME"]] = child
    return found


def world_size(run: Path) -> int:
    return int(json.loads((run / "run.json").read_text())["world_size"])


def trained_on(run: Path, process: subprocess.Popen[str], *, size: int) -> None:
    """Waits until ``size`` ranks have taken five more steps."""
    wait_until(lambda: world_size(run) == size, process=process, limit=LIMIT_SECONDS)
    before = len(steps(run))
    wait_until(lambda: len(steps(run)) >= before + 5, process=process, limit=LIMIT_SECONDS)


def assert_one_process_gives_the_same(run: Path, *, most_missing: int) -> None:
    """Every loss that was logged, and the last checkpoint, equal one process's in float64."""
    done, alone = steps(run), run.parent / "single"
    count = int(done[-1]["step"])
    assert len(done) >= count - most_missing
    distrib("train", *TINY, "strategy=single", "run_dir=single", f"train.stop_after={count}", cwd=run.parent)
    expected = losses(alone)
    for record in done:
        assert record["loss"] == pytest.approx(expected[int(record["step"]) - 1], abs=1e-9, rel=0)
    ours, theirs = (weights(folder, step=count) for folder in (run, alone))
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= 1e-9


def stop(process: subprocess.Popen[str]) -> None:
    """Asks one worker to finish its step, save and end, which ends the job well."""
    next(iter(workers(process).values())).send_signal(signal.SIGTERM)
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == 0, output


@pytest.mark.full
@pytest.mark.parametrize("victim", HOSTS)
def test_a_killed_worker_is_replaced(tmp_path: Path, victim: str) -> None:
    """Kill rank 0 or 1: the other goes on alone, a new one joins, and the result is that of one process."""
    run = tmp_path / "run"
    name_hosts(tmp_path, *HOSTS)
    with elastic_job(tmp_path, "strategy=horovod", "strategy.elastic=true", f"run_dir={run}") as process:
        wait_until((run / "run.json").exists, process=process, limit=LIMIT_SECONDS)
        trained_on(run, process, size=2)
        workers(process)[victim].send_signal(signal.SIGKILL)
        trained_on(run, process, size=1)
        trained_on(run, process, size=2)
        stop(process)
    assert_one_process_gives_the_same(run, most_missing=2)  # the dead rank's share of a loss is lost with it


@pytest.mark.full
def test_hosts_come_and_go(tmp_path: Path) -> None:
    """A job that begins on one host grows to two and shrinks to one, and not even a loss is missing."""
    run = tmp_path / "run"
    name_hosts(tmp_path, HOSTS[0])
    with elastic_job(tmp_path, "strategy=horovod", "strategy.elastic=true", f"run_dir={run}") as process:
        wait_until((run / "run.json").exists, process=process, limit=LIMIT_SECONDS)
        trained_on(run, process, size=1)
        name_hosts(tmp_path, *HOSTS)
        trained_on(run, process, size=2)
        name_hosts(tmp_path, HOSTS[0])
        trained_on(run, process, size=1)
        stop(process)
    assert_one_process_gives_the_same(run, most_missing=0)


def weights(run: Path, *, step: int) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors")


def test_an_elastic_job_needs_a_named_run_directory(tmp_path: Path) -> None:
    """Refused at once, with the reason: who joins later could not find it."""
    name_hosts(tmp_path, HOSTS[0])
    with elastic_job(tmp_path, "strategy=horovod", "strategy.elastic=true") as process:
        output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode != 0
    assert "run_dir=None: name it: ranks that join an elastic job later must find it" in output
