"""Horovod under the real command: started by horovodrun, and with a rank that dies."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import TINY, distrib, losses, start, steps, summary, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


def horovodrun() -> str:
    """Horovod's launcher, which is installed beside the interpreter."""
    found = shutil.which("horovodrun", path=str(Path(sys.executable).parent))
    assert found, "horovodrun is not installed: make horovod"
    return found


def test_horovodrun_gives_the_one_process_run(tmp_path: Path, one_process: Path) -> None:
    """Started by horovodrun on 2 processes: one run directory and one process's losses."""
    prefix = [horovodrun(), "--gloo", "-np", "2", sys.executable]
    distrib("train", *TINY, "strategy=horovod", cwd=tmp_path, prefix=prefix)
    (run,) = (path for path in (tmp_path / "runs" / "tiny").iterdir() if path.is_dir())
    assert losses(run) == pytest.approx(losses(one_process), abs=1e-5, rel=0)
    told = summary(run)
    assert (told["strategy"], told["world_size"]) == ("horovod", 2)
    assert told["metrics"]["accuracy"] == summary(one_process)["metrics"]["accuracy"]


def test_a_killed_rank_ends_the_job(tmp_path: Path) -> None:
    """When one of two ranks is killed the command fails within seconds and leaves no process."""
    settings = ("train.steps=100000", "strategy=horovod", "launcher.num_processes=2", "run_dir=run")
    process = start("train", "experiment=tiny", *settings, "train.log_every=1", cwd=tmp_path)
    wait_until(lambda: len(steps(tmp_path / "run")) >= 2, process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (child for child in children if writes_to(child, "rank-1.log"))
    victim.send_signal(signal.SIGKILL)
    since = time.monotonic()
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - since < 10  # 0.8 s seen; unnoticed, it would be timeouts.collective
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in output
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def writes_to(process: psutil.Process, name: str) -> bool:
    """Whether standard error of a rank is the log of that name."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/2").endswith(name)
    except OSError:
        return False


def test_adasum_is_refused_by_the_command(tmp_path: Path) -> None:
    """Without MPI: exit code 2, naming the key and what would work."""
    settings = ("strategy=horovod", "strategy.op=adasum", "launcher.num_processes=2")
    done = distrib("train", *TINY, *settings, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "strategy.op=adasum: needs Horovod's MPI controller" in done.stdout + done.stderr
