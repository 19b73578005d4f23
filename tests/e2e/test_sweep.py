"""Sweeps and runs with real processes, started by us and by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distrib.config import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WORDS = {"good": "fine great happy", "bad": "poor awful sad"}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run of seconds on a file of 60 lines; the working directory is empty but for that file."""
    lines = [f"{text} {number},{label}" for number in range(30) for label, text in WORDS.items()]
    (tmp_path / "words.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return ["experiment=tiny", "data=table", "data.path=words.csv", "train.steps=2", "task.max_length=8"]


def distrib(folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *prefix, "-m", "distrib", "train", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), text=True, capture_output=True, timeout=150, check=False
    )


def environment() -> dict[str, str]:
    checkout = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": checkout, "COLUMNS": "160"}


def results(folder: Path) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = json.loads((folder / "multirun/latest/sweep.json").read_text())["trials"]
    return kept


def test_each_trial_is_a_job_of_several_processes(tmp_path: Path, words: list[str]) -> None:
    """A trial that fails in its workers leaves the next one to run, and the table shows them all."""
    ended = distrib(
        tmp_path, "-m", *words, "strategy=ddp", "launcher.num_processes=2", "data.path=nowhere.csv,words.csv"
    )
    assert ended.returncode == 1, ended.stderr
    failed, done = results(tmp_path)
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "nowhere.csv" in ended.stderr
    assert (done["metric"], done["steps"]) == ("accuracy", 2)
    run_dir = Path(done["run_dir"])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert done["value"] == summary["metrics"]["accuracy"]
    assert sorted(log.name for log in (run_dir / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    table = ended.stdout.rpartition("overrides")[2]
    assert [line.split()[2] for line in table.splitlines() if "data.path" in line] == ["failed", "done"]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def test_torchrun_makes_one_run_directory(tmp_path: Path, words: list[str]) -> None:
    """Every rank composes the same words, and one directory is made."""
    ended = distrib(tmp_path, *words, "strategy=ddp", prefix=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    (run_dir,) = [path for path in (tmp_path / "runs/tiny").iterdir() if path.is_dir()]
    assert (tmp_path / "runs/latest").resolve() == run_dir
    assert load(run_dir).choices["strategy"] == "ddp"
    assert json.loads((run_dir / "summary.json").read_text())["world_size"] == 2


def test_torchrun_makes_one_sweep_tree(tmp_path: Path, words: list[str]) -> None:
    """Every rank takes part in every trial of one sweep, also after one that failed."""
    ended = distrib(
        tmp_path, "-m", *words, "strategy=ddp", "data.path=nowhere.csv,words.csv", prefix=TORCHRUN
    )
    assert ended.returncode != 0
    (root,) = [path for path in (tmp_path / "multirun/tiny").iterdir() if path.is_dir()]
    assert sorted(path.name for path in root.iterdir()) == ["0", "1", "sweep.html", "sweep.json"]
    assert [result["status"] for result in results(tmp_path)] == ["failed", "done"]
    assert json.loads((root / "1" / "summary.json").read_text())["world_size"] == 2
    assert f"sweep directory   {root}" in ended.stdout


def test_ctrl_c_ends_the_sweep_and_its_processes(tmp_path: Path, words: list[str]) -> None:
    """Within seconds the workers are gone, the later trials are not started, and the code is 130."""
    command = [sys.executable, "-m", "distrib", "train", "-m", *words, "seed=1,2,3", "train.steps=100000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sweep:
        try:
            wait_for(tmp_path / "multirun/latest/0/metrics.jsonl", sweep)
            sweep.send_signal(signal.SIGINT)
            assert sweep.wait(timeout=20) == 130
        finally:
            sweep.kill()
    assert [result["status"] for result in results(tmp_path)] == ["interrupted", "not run", "not run"]


def test_sigterm_saves_the_trial_and_ends_the_sweep(tmp_path: Path, words: list[str]) -> None:
    """The trial that runs finishes its step and saves; the sweep says what was not run."""
    command = [sys.executable, "-m", "distrib", "train", "-m", *words, "seed=1,2", "train.steps=100000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sweep:
        try:
            wait_for(tmp_path / "multirun/latest/0/metrics.jsonl", sweep)
            sweep.send_signal(signal.SIGTERM)
            assert sweep.wait(timeout=30) == 1
        finally:
            sweep.kill()
    assert [result["status"] for result in results(tmp_path)] == ["stopped by a signal", "not run"]
    assert list((tmp_path / "multirun/latest/0/checkpoints").glob("step-*"))


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file holds something, a minute at most."""
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None, "ended before it trained"
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.05)
