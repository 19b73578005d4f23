"""DeepSpeed under the real command: quiet, without compiling, and with a rank that dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from runs import TINY, distrib, losses, start, steps, summary, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.full), 3])
def test_the_command_shows_what_ddp_shows(
    tmp_path: Path, one_process: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """One process's numbers, no word of DeepSpeed's on screen, and no op compiled."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    done = distrib(
        "train", *TINY, f"strategy=zero{stage}", "launcher.num_processes=2", "run_dir=run", cwd=tmp_path
    )
    assert done.stderr == ""
    assert "deepspeed" not in done.stdout.lower()
    assert "warning" not in done.stdout.lower()
    assert not list((tmp_path / "extensions").rglob("*"))
    assert losses(tmp_path / "run") == pytest.approx(losses(one_process), abs=1e-5, rel=0)
    told, expected = summary(tmp_path / "run"), summary(one_process)
    assert (told["strategy"], told["world_size"]) == (f"zero{stage}", 2)
    assert told["num_parameters"] == expected["num_parameters"]
    assert told["metrics"]["accuracy"] == expected["metrics"]["accuracy"]


def test_a_contradiction_is_refused_by_the_command(tmp_path: Path) -> None:
    """Exit code 2 before a process starts, naming the key and where it is decided."""
    settings = ("strategy=zero2", "+strategy.config.gradient_clipping=1.0", "launcher.num_processes=2")
    done = distrib("train", *TINY, *settings, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "strategy.config.gradient_clipping=1.0: remove it: decided by train.max_grad_norm" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.full  # of the other engines it is tried in every run
@pytest.mark.parametrize("stage", [1, 3])
def test_a_killed_rank_ends_the_job(tmp_path: Path, stage: int) -> None:
    """When one of two ranks is killed the command fails within seconds and leaves no process."""
    settings = ("train.steps=100000", f"strategy=zero{stage}", "launcher.num_processes=2", "run_dir=run")
    process = start("train", "experiment=tiny", *settings, "train.log_every=1", cwd=tmp_path)
    wait_until(lambda: len(steps(tmp_path / "run")) >= 2, process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (child for child in children if writes_to(child, "rank-1.log"))
    victim.send_signal(signal.SIGKILL)
    since = time.monotonic()
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - since < 10  # unnoticed, it would be timeouts.collective
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in output
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_activation_checkpointing_changes_no_loss(tmp_path: Path, one_process: Path, strategy: str) -> None:
    """Blocks that run again in backward gather weights again, draw the same dropout and add up alike."""
    settings = (f"strategy={strategy}", "train.activation_checkpointing=true", "launcher.num_processes=2")
    distrib("train", *TINY, *settings, "run_dir=run", cwd=tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(one_process), abs=1e-5, rel=0)


def writes_to(process: psutil.Process, name: str) -> bool:
    """Whether standard error of a rank is the log of that name."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/2").endswith(name)
    except OSError:
        return False
