"""Real training through SLURM: the losses are those of one process, whatever happens to the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from slurm_cluster import Cluster, cluster, missing, wait_until

ROOT = Path(__file__).parents[2]
ABSENT = missing()

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)),
]

LIMIT_SECONDS = 600.0
WORDS = {"good": "fine great happy", "bad": "poor awful sad"}
RUN = ["experiment=tiny", "data=table", "data.path=words.csv", "task.max_length=8", "train.steps=12"]
ON_SLURM = ["strategy=ddp", "launcher=slurm", "launcher.num_nodes=2", "train.log_every=1"]
SAVING = ["checkpoint.save_every=2", "checkpoint.keep_best=false"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(size=3) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_runs_on(slurm: Cluster) -> Iterator[None]:
    yield
    for job in slurm.jobs():
        slurm.run("scancel", job)
    slurm.wait_idle()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a file of 60 lines."""
    folder = tmp_path_factory.mktemp("place")
    lines = [f"{text} {number},{label}" for number in range(30) for label, text in WORDS.items()]
    (folder / "words.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> list[float]:
    """The losses of one process that nobody breaks."""
    command = [sys.executable, "-m", "distrib", "train", *RUN, "run_dir=unbroken"]
    subprocess.run(command, cwd=place, env=variables(), check=True, stdout=subprocess.DEVNULL, timeout=300)
    return losses(place / "unbroken")


def variables() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}


def start(slurm: Cluster, place: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        slurm.on("h1", "env", f"--chdir={place}", *command),
        env={**variables(), **slurm.environment(), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(slurm: Cluster, place: Path, *settings: str) -> subprocess.Popen[str]:
    return start(slurm, place, sys.executable, "-m", "distrib", "train", *settings)


def ended_well(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, out
    return out


def records(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [
        record for record in (json.loads(line) for line in lines if line.endswith("\n")) if "lr" in record
    ]


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in records(run_dir)]


def wait_step(run_dir: Path, step: int) -> None:
    wait_until(lambda: any(record["step"] >= step for record in records(run_dir)), seconds=LIMIT_SECONDS)


def ranks_in(slurm: Cluster, run_dir: Path) -> list[psutil.Process]:
    """The ranks alone: leaders of a session of their own."""
    return [
        process
        for process in slurm.processes(f"distrib.worker {run_dir}")
        if os.getsid(process.pid) == process.pid
    ]


def test_the_losses_are_those_of_one_process(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """Two nodes of two processes each, submitted and followed."""
    out = ended_well(train(slurm, place, *RUN, *ON_SLURM, "launcher.num_processes=2", "run_dir=plain"))
    assert losses(place / "plain") == pytest.approx(expected, abs=1e-5)
    assert json.loads((place / "plain" / "summary.json").read_text())["world_size"] == 4
    assert "step 12/12" in out


def test_a_killed_rank_changes_nothing(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """All ranks come back from the last checkpoint, and the losses are those of the unbroken run."""
    run_dir = place / "killed"
    process = train(slurm, place, *RUN, *ON_SLURM, *SAVING, "launcher.max_restarts=1", f"run_dir={run_dir}")
    wait_step(run_dir, 5)
    ranks_in(slurm, run_dir)[-1].kill()
    assert "starting all ranks again (1 of 1)" in ended_well(process)
    assert losses(run_dir) == pytest.approx(expected, abs=1e-5)


def test_the_time_limit_changes_nothing(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """The signal comes, ranks save, the job queues again and ends with the losses of the unbroken run."""
    run_dir = place / "limited"
    process = train(slurm, place, *RUN, *ON_SLURM, f"run_dir={run_dir}")
    wait_step(run_dir, 3)
    (job,) = slurm.jobs()
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as SLURM does before the time limit
    assert "back in the queue" in ended_well(process)
    assert losses(run_dir) == pytest.approx(expected, abs=1e-5)


def test_servers_on_other_nodes_change_nothing(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """Workers on two nodes, two servers on the node of another partition, as one heterogeneous job."""
    strategy = ["strategy=parameter_server", "strategy.num_servers=2"]
    servers = [f"launcher.servers.{key}" for key in ("num_nodes=1", "num_processes=2", "partition=last")]
    ended_well(train(slurm, place, *RUN, *ON_SLURM, *strategy, *servers, "run_dir=served"))
    assert losses(place / "served") == pytest.approx(expected, abs=1e-5)
    assert json.loads((place / "served" / "summary.json").read_text())["world_size"] == 4
    assert " on h3: " in (place / "served" / "logs" / "rank-3.log").read_text()


def test_the_doctor_looks_at_every_node(slurm: Cluster, place: Path) -> None:
    """As a job of its own, two ranks on each: they meet, connect and see one directory; nothing is left."""
    command = ["doctor", "launcher=slurm", "launcher.num_nodes=3", "--json", "doctor.json"]
    ended_well(start(slurm, place, sys.executable, "-m", "distrib", *command))
    found = {(each["area"], each["name"]): each for each in json.loads((place / "doctor.json").read_text())}
    assert found["network", "rendezvous"]["seen"].startswith("6 of 6 ranks met at h1:")
    assert found["network", "connections"]["seen"] == "all 6 directions"
    assert found["disk", "shared directory"]["seen"].startswith("3 hosts see what rank 0 writes to")
    assert "6 ranks summed 4 MiB" in found["engines", "torch"]["seen"]
    assert not (place / "runs" / "doctor").exists()


def test_a_sweep_is_one_array(slurm: Cluster, place: Path) -> None:
    """Each trial is a task of one job; the sweep waits for all and ends with its table."""
    sweep = [*RUN, *ON_SLURM, "train.steps=2", "seed=1,2", "run_dir=sweep"]
    out = ended_well(train(slurm, place, "-m", *sweep))
    assert "submitted: 2 trials" in out
    kept = json.loads((place / "sweep" / "sweep.json").read_text())
    trials = kept if isinstance(kept, list) else kept["trials"]
    assert [trial["status"] for trial in trials] == ["done", "done"]


def test_srun_starts_ranks_directly(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """``srun python -m distrib train``: one run directory, ranks found from the environment."""
    srun = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-m",
        "distrib",
        "train",
    ]
    ended_well(start(slurm, place, *srun, *RUN, "strategy=ddp", "run_dir=direct"))
    assert losses(place / "direct") == pytest.approx(expected, abs=1e-5)


def test_the_script_that_people_submit(slurm: Cluster, place: Path, expected: list[float]) -> None:
    """launch/slurm.sbatch trains, saves when it is told that time is short, and goes on after the requeue."""
    bin_folder = place / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(sys.executable)
    own = ["--ntasks-per-node=1", "--parsable", f"--chdir={place}", str(ROOT / "launch" / "slurm.sbatch")]
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    submit = start(slurm, place, "env", path, "sbatch", *own, *RUN, "strategy=ddp", "train.log_every=1")
    job = ended_well(submit).strip()
    run_dir = place / "runs" / f"slurm-{job}"
    wait_step(run_dir, 3)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: not slurm.jobs(), seconds=LIMIT_SECONDS)
    assert losses(run_dir) == pytest.approx(expected, abs=1e-5), (place / f"distrib-{job}.out").read_text()


def test_ctrl_c_ends_a_real_run(slurm: Cluster, place: Path) -> None:
    """The job is cancelled, the ranks save, and no process stays on any node."""
    run_dir = place / "interrupted"
    process = train(slurm, place, *RUN, *ON_SLURM, "train.steps=100000", f"run_dir={run_dir}")
    wait_step(run_dir, 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130
    wait_until(lambda: not slurm.processes(str(run_dir)))
    assert list((run_dir / "checkpoints").glob("step-*"))
