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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

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
        command, cwd=folder, env=environment(), text=True, capture_output=True, timeout=400, check=False
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
    table = ended.stdout.rpartition("overrides")[2].partition("best ")[0]
    assert [line.split()[2] for line in table.splitlines() if "data.path" in line] == ["failed", "done"]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.full
def test_torchrun_makes_one_run_directory(tmp_path: Path, words: list[str]) -> None:
    """Every rank composes the same words, and one directory is made."""
    ended = distrib(tmp_path, *words, "strategy=ddp", prefix=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    (run_dir,) = [path for path in (tmp_path / "runs/tiny").iterdir() if path.is_dir()]
    assert (tmp_path / "runs/latest").resolve() == run_dir
    assert load(run_dir).choices["strategy"] == "ddp"
    assert json.loads((run_dir / "summary.json").read_text())["world_size"] == 2


@pytest.mark.full
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


@pytest.mark.full
def test_ctrl_c_ends_trials_that_run_beside_each_other(tmp_path: Path, words: list[str]) -> None:
    """Both jobs and all their ranks are gone, their directories are there, and the code is 130."""
    command = [sys.executable, "-m", "distrib", "train", "-m", *words, "seed=1,2,3", "train.steps=100000"]
    command += ["strategy=ddp", "launcher.num_processes=2", "sweep.parallel=2"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as sweep:
        try:
            for trial in ("0", "1"):
                wait_for(tmp_path / "multirun/latest" / trial / "metrics.jsonl", sweep)
            sweep.send_signal(signal.SIGINT)
            output = sweep.communicate(timeout=60)[0]
        finally:
            sweep.kill()
    assert sweep.returncode == 130, output
    assert [result["status"] for result in results(tmp_path)] == ["interrupted", "interrupted", "not run"]
    assert [line for line in output.splitlines() if "loss" in line] == []  # trials write to their own logs
    assert "loss" in (tmp_path / "multirun/latest/0/logs/rank-0.log").read_text()


@pytest.mark.full
def test_a_killed_sweep_goes_on_to_the_same_results(tmp_path: Path, words: list[str]) -> None:
    """The trial that was cut off goes on from its checkpoint; every result is that of an unbroken sweep."""
    words = [*words, "train.steps=2,200", "checkpoint.save_every=20", "checkpoint.keep_last=20"]
    whole = distrib(tmp_path, "-m", *words, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, "-m", "distrib", "train", "-m", *words, "run_dir=cut"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sweep:
        try:
            wait_for(tmp_path / "cut/1/checkpoints/step-00000020/MANIFEST.json", sweep)
        finally:
            sweep.kill()
    assert [trial["status"] for trial in trials(tmp_path / "cut")] == ["done", "running"]

    resumed = distrib(tmp_path, "-m", "resume=cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on after step" in resumed.stdout
    assert "trial 0" not in resumed.stdout
    told = [(t["status"], t["value"], t["steps"]) for t in trials(tmp_path / "cut")]
    assert told == [(t["status"], t["value"], t["steps"]) for t in trials(tmp_path / "whole")]
    assert losses(tmp_path / "cut/1") == pytest.approx(losses(tmp_path / "whole/1"), abs=1e-6)


@pytest.mark.full
def test_optuna_prunes_real_trials(tmp_path: Path, words: list[str]) -> None:
    """A search over rates at once and pruned: who lags has saved, the best is good and not one of them.

    So many trials, as which rates two at once draw is chance: of 6, none was good in one run.
    """
    ended = distrib(
        tmp_path, "-m", *words, "sweep=optuna", "sweep.num_trials=12", "sweep.startup_trials=6",
        "sweep.parallel=2", "sweep.prune_after_trials=2", "optimizer.lr=tag(log, interval(1e-6,1e-1))",
        "train.steps=100", "train.eval_every=10",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = results(tmp_path)
    assert len(found) == 12
    assert {trial["status"] for trial in found} == {"done", "pruned"}
    pruned = [trial for trial in found if trial["status"] == "pruned"]
    assert all(list((Path(trial["run_dir"]) / "checkpoints").glob("step-*")) for trial in pruned)
    best = {status: max(t["value"] for t in found if t["status"] == status) for status in ("done", "pruned")}
    assert best["done"] >= best["pruned"]
    assert best["done"] > 0.9


def trials(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / "sweep.json").read_text())["trials"]
    return found


def losses(run_dir: Path) -> list[float]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file holds something, two minutes at most."""
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None, "ended before it trained"
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.05)
