"""The real command on real data: the same result however it is started, stopped and resumed."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from runs import distrib, end, losses, records, start, steps, summary, wait_until
from safetensors.torch import load_file

from distrib.checkpoint import find_checkpoint

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

TINY = ("experiment=tiny", "train.eval_every=10", "checkpoint.save_every=5")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, 20 steps, unbroken; in float64, so that differences are bugs and not rounding."""
    folder = tmp_path_factory.mktemp("reference")
    distrib("train", *TINY, "strategy=single", "precision=fp64", "run_dir=run", cwd=folder)
    return folder / "run"


def assert_same_run(ours: Path, reference: Path) -> None:
    """Losses and gradient norms of every step, evaluations, and the final weights."""
    assert losses(ours) == pytest.approx(losses(reference), abs=1e-9, rel=0)
    norms = [[record["grad_norm"] for record in steps(run)] for run in (ours, reference)]
    assert norms[0] == pytest.approx(norms[1], abs=1e-8, rel=0)
    assert summary(ours)["metrics"]["accuracy"] == summary(reference)["metrics"]["accuracy"]
    weights = [load_file(find_checkpoint(run) / "model" / "model.safetensors") for run in (ours, reference)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() <= 1e-9, name


def test_the_run_directory_holds_what_is_promised(reference: Path) -> None:
    """One record a step with every number, evaluations, summary, checkpoints, log and page."""
    numbers = {"step", "loss", "grad_norm", "lr", "examples", "tokens", "seconds"}
    assert [record["step"] for record in steps(reference)] == list(range(1, 21))
    assert all(numbers <= record.keys() for record in steps(reference))
    assert [r["step"] for r in records(reference) if "eval/accuracy" in r] == [10, 20]
    told = summary(reference)
    assert (told["steps"], told["world_size"], told["strategy"]) == (20, 1, "single")
    assert told["examples_per_second"] > 0
    assert told["peak_memory"] > 1e8
    assert told["versions"]["torch"]
    for name in ("config.yaml", "report.html", "logs/rank-0.log", "checkpoints/step-00000020/MANIFEST.json"):
        assert (reference / name).stat().st_size > 0, name


@pytest.mark.full
def test_three_processes_with_other_microbatches_of_the_same_size(tmp_path: Path, reference: Path) -> None:
    """DDP on 3 processes gives the one-process run: 4 microbatches do not divide by 3."""
    distrib(
        "train",
        *TINY,
        "strategy=ddp",
        "launcher.num_processes=3",
        "precision=fp64",
        "run_dir=run",
        cwd=tmp_path,
    )
    assert_same_run(tmp_path / "run", reference)
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == [
        "rank-0.log",
        "rank-1.log",
        "rank-2.log",
    ]


def test_torchrun_makes_one_run_directory(tmp_path: Path, reference: Path) -> None:
    """Started from outside on 2 processes: one directory, the same numbers."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    distrib("train", *TINY, "strategy=ddp", "precision=fp64", cwd=tmp_path, prefix=torchrun)
    made = [path for path in (tmp_path / "runs" / "tiny").iterdir() if path.is_dir()]
    assert len(made) == 1
    assert_same_run(made[0], reference)
    assert sorted(path.name for path in (made[0] / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]


def test_killed_and_resumed_elsewhere(tmp_path: Path, reference: Path) -> None:
    """SIGKILL in the middle of an epoch, then resumed at another world size: the unbroken run."""
    slow = ("train.log_every=1", "train.prefetch=0")
    process = start(
        "train",
        *TINY,
        *slow,
        "strategy=ddp",
        "launcher.num_processes=2",
        "precision=fp64",
        "run_dir=run",
        cwd=tmp_path,
    )
    run = tmp_path / "run"
    wait_until(lambda: (run / "checkpoints" / "step-00000005").exists(), process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    done = distrib("train", f"resume={run}", "launcher.num_processes=3", cwd=tmp_path)
    assert "resumed after step" in done.stdout
    assert_same_run(run, reference)


def test_sigterm_saves_and_exits_zero(tmp_path: Path, reference: Path) -> None:
    """SIGTERM finishes the step, saves and exits 0; resuming gives the unbroken run."""
    process = start(
        "train", *TINY, "train.log_every=1", "strategy=ddp", "launcher.num_processes=2", "precision=fp64",
        "train.prefetch=0", "run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    run = tmp_path / "run"
    wait_until(lambda: len(steps(run)) >= 2, process=process)
    assert end(process, signal.SIGTERM) == 0
    told = summary(run)
    assert told["stopped_by"] == "SIGTERM"
    assert 2 <= told["steps"] < 20
    assert find_checkpoint(run).name == f"step-{told['steps']:08d}"
    distrib("train", f"resume={run}", "strategy=single", "launcher.num_processes=1", cwd=tmp_path)
    assert_same_run(run, reference)


def test_a_killed_worker_ends_the_job(tmp_path: Path) -> None:
    """When one of two workers is killed the command fails within seconds and leaves no process."""
    process = start(
        "train",
        *TINY,
        "train.steps=100000",
        "strategy=ddp",
        "launcher.num_processes=2",
        "run_dir=run",
        cwd=tmp_path,
    )
    wait_until(lambda: len(steps(tmp_path / "run")) >= 2, process=process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1" or "rank=1" in " ".join(child.cmdline())
    ]
    children = psutil.Process(process.pid).children(recursive=True)
    victim = workers[0] if workers else children[-1]
    os.kill(victim.pid, signal.SIGKILL)
    output = process.communicate(timeout=30)[0]
    assert process.returncode != 0
    assert "SIGKILL" in output
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_switches_that_change_how_not_what(tmp_path: Path, reference: Path) -> None:
    """Activation checkpointing gives the same numbers, dropout included."""
    switches = ("strategy=single", "precision=fp64", "train.activation_checkpointing=true")
    distrib("train", *TINY, *switches, "run_dir=run", cwd=tmp_path)
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.full  # of every strategy tests/distributed tries it in every run
def test_bf16_follows_fp32(tmp_path: Path, reference: Path) -> None:
    """bf16 autocast trains: its losses stay within bf16's precision of the reference."""
    distrib("train", *TINY, "strategy=single", "precision=bf16", "run_dir=run", cwd=tmp_path)
    # 8 bits of mantissa: 2^-8 = 0.4 % per rounding, on losses of about 1.6.
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), abs=0.03)


@pytest.mark.full  # tests/unit/test_compose.py has the configuration in every run
def test_a_strategy_from_another_package(tmp_path: Path, reference: Path) -> None:
    """A Hydra config and a class are all it takes: nothing is registered anywhere."""
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text(
        "from distrib.strategies.single import Single\n\n\n"
        "class Own(Single):\n"
        '    """Somebody else\'s strategy."""\n\n'
        "    def __init__(self, *, greeting: str = 'hello') -> None:\n"
        "        self.greeting = greeting\n"
    )
    folder = tmp_path / "conf" / "strategy"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: theirs.own.Own\ngreeting: hello\n")
    distrib(
        "train", *TINY, "--config-dir", "conf", "strategy=own", "strategy.greeting=hi", "plugins=[theirs]",
        "precision=fp64", "run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert_same_run(tmp_path / "run", reference)
    assert summary(tmp_path / "run")["strategy"] == "own"


@pytest.mark.full  # tests/distributed/test_diloco.py has such replicas in every run
def test_replicas_of_several_ranks_train_apart(tmp_path: Path) -> None:
    """DiLoCo over two replicas of two ranks each learns, and keeps what its replicas agreed on."""
    inner = "strategy.inner._target_=distrib.strategies.ddp.DDP"
    options = ("strategy.replica_size=2", inner, "strategy.sync_every=2", "launcher.num_processes=4")
    distrib("train", *TINY, "train.steps=6", "strategy=diloco", *options, "run_dir=run", cwd=tmp_path)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    assert "strategy/exchange_wait" in steps(tmp_path / "run")[-1]
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert list((checkpoint / "strategy").glob("*.safetensors"))
