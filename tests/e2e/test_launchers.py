"""The launchers of others under the real command: started by it, and started from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runs import LIMIT_SECONDS, TINY, command, distrib, environment, losses, start, steps, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (.ci/cluster)")


@pytest.mark.full  # of torchrun it is tried in every run
@needs_mpi
def test_mpirun_gives_the_one_process_run(
    tmp_path: Path, one_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by mpirun on 2 processes: one run directory, one configuration, one process's losses."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    prefix = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none", sys.executable]
    distrib("train", *TINY, "strategy=ddp", cwd=tmp_path, prefix=prefix)
    (run,) = (path for path in (tmp_path / "runs" / "tiny").iterdir() if path.is_dir())
    assert losses(run) == pytest.approx(losses(one_process), abs=1e-5, rel=0)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("mpirun", marks=needs_mpi),
        pytest.param("torchrun", marks=pytest.mark.full),
        pytest.param("horovodrun", marks=pytest.mark.full),
    ],
)
def test_another_launcher_is_one_setting(tmp_path: Path, launcher: str, one_process: Path) -> None:
    """Started by the command: the same losses, a log for each rank, and no process left."""
    strategy = "horovod" if launcher == "horovodrun" else "ddp"
    settings = (f"strategy={strategy}", f"launcher={launcher}", "launcher.num_processes=2", "run_dir=run")
    done = distrib("train", *TINY, *settings, cwd=tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(one_process), abs=1e-5, rel=0)
    assert {path.name for path in (tmp_path / "run" / "logs").glob("rank-*")} == {"rank-0.log", "rank-1.log"}
    assert "ranks meet at    127.0.0.1:" in done.stderr
    assert not list((tmp_path / "run" / "logs").glob(".*"))


@pytest.mark.full
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpi), "torchrun", "horovodrun"])
def test_a_failing_ranks_words_come_last(tmp_path: Path, launcher: str) -> None:
    """Whatever the program has to say of it, the end of the screen is the rank's own message."""
    strategy = "horovod" if launcher == "horovodrun" else "ddp"
    settings = (f"strategy={strategy}", "data=table", "data.path=absent.csv", "data.text=a", "data.label=b")
    words = (f"launcher={launcher}", "launcher.num_processes=2", "run_dir=run")
    done = distrib("train", *TINY, *settings, *words, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "rank 0 failed:\n" in done.stderr or "rank 1 failed:\n" in done.stderr
    assert "absent.csv" in done.stderr.strip().splitlines()[-1]


@pytest.mark.full
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpi), "torchrun", "horovodrun"])
def test_a_request_to_stop_saves(tmp_path: Path, launcher: str) -> None:
    """SIGTERM to the command: the ranks finish the step and save, and it exits with 0."""
    strategy = "horovod" if launcher == "horovodrun" else "ddp"
    settings = (f"strategy={strategy}", f"launcher={launcher}", "launcher.num_processes=2", "run_dir=run")
    process = start("train", "experiment=tiny", "train.steps=100000", *settings, cwd=tmp_path)
    wait_until(lambda: len(steps(tmp_path / "run")) >= 2, process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == 0, output
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.full
def test_torchruns_own_restart_goes_on(tmp_path: Path) -> None:
    """Stock torchrun --max-restarts: a rank is killed, and the same run directory goes on."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.2"]
    prefix = [sys.executable, "-m", "torch.distributed.run", *options]
    settings = ("strategy=ddp", "train.steps=40", "train.log_every=1", "checkpoint.save_every=4")
    process = subprocess.Popen(
        command("train", "experiment=tiny", *settings, prefix=prefix),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    runs = tmp_path / "runs" / "tiny"

    def reached() -> bool:
        return any(len(steps(run)) >= 9 for run in runs.glob("20*"))

    wait_until(reached, process=process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    next(each for each in ranks if each.environ().get("RANK") == "1").kill()
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == 0, output
    (run,) = (path for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    assert "resumed after step " in output
    assert [record["step"] for record in steps(run)] == list(range(1, 41))
    distrib("train", "experiment=tiny", "train.steps=40", f"run_dir={tmp_path}/single", cwd=tmp_path)
    assert losses(run) == pytest.approx(losses(tmp_path / "single"), abs=1e-5, rel=0)


@pytest.mark.full  # tests/launch/test_ssh.py restarts a stand-in in every run
def test_a_restarted_job_says_so(tmp_path: Path) -> None:
    """launcher.max_restarts on this machine: a killed rank, and the losses are the unbroken run's."""
    settings = ("strategy=ddp", "train.steps=40", "train.log_every=1", "checkpoint.save_every=4")
    words = ("launcher.num_processes=2", "launcher.max_restarts=1", "run_dir=run")
    process = start("train", "experiment=tiny", *settings, *words, cwd=tmp_path)
    wait_until(lambda: len(steps(tmp_path / "run")) >= 9, process=process)
    log = str(tmp_path / "run" / "logs" / "rank-1.log")
    ranks = psutil.Process(process.pid).children(recursive=True)
    next(each for each in ranks if os.readlink(f"/proc/{each.pid}/fd/2") == log).kill()
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == 0, output
    assert "rank 1 was killed by SIGKILL" in output
    assert "notice: restart 1 of 1, from the last checkpoint" in output
    distrib("train", "experiment=tiny", "train.steps=40", "run_dir=single", cwd=tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "single"), abs=1e-5, rel=0)
