"""``launcher=slurm`` against SLURM's own daemons on hosts of our own: jobs start, fail, stop and go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, cluster, missing, wait_until

HERE = Path(__file__).parent
ABSENT = missing()

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)),
]

LIMIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(size=3) as started:
        yield started


@pytest.fixture
def fragile() -> Iterator[Cluster]:
    """A cluster that a test may break."""
    with cluster(size=3) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_runs_on(slurm: Cluster, tmp_path: Path) -> Iterator[None]:
    """After each test no job is left in SLURM, and no process of it on any host."""
    yield
    left = slurm.jobs()
    for job in left:
        slurm.run("scancel", job)
    slurm.wait_idle()
    wait_until(lambda: not slurm.processes(str(tmp_path)))
    assert left == []


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launcher at work, its standard output and error as files that can be read meanwhile."""

    process: subprocess.Popen[bytes]
    run_dir: Path

    @property
    def out(self) -> str:
        return (self.run_dir.parent / "out").read_text()

    @property
    def err(self) -> str:
        return (self.run_dir.parent / "err").read_text()

    def code(self) -> int:
        return self.process.wait(timeout=LIMIT_SECONDS)

    def log(self, rank: int) -> str:
        return (self.run_dir / "logs" / f"rank-{rank}.log").read_text()

    def wait_ready(self, *ranks: int) -> None:
        wait_until(
            lambda: all((self.run_dir / f"ready-{rank}").exists() for rank in ranks), seconds=LIMIT_SECONDS
        )

    def job(self) -> str:
        wait_until(lambda: re.search(r"job (\d+)   submitted", self.out))
        return re.findall(r"job (\d+)   submitted", self.out)[0]


@contextmanager
def launch(
    slurm: Cluster, tmp_path: Path, behaviour: str, *, prefix: tuple[str, ...] = (), **settings: Any
) -> Iterator[Launch]:
    """``launcher=slurm`` on h1, of stand-in ranks."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    command = [
        *prefix, sys.executable, str(HERE / "slurm_start.py"), str(run_dir), json.dumps(settings),
        "slurm_standin", behaviour, str(run_dir),
    ]  # fmt: skip
    paths = f"{HERE}:{HERE.parents[1]}"
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            slurm.on("h1", *command),
            env={**slurm.environment(), "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield Launch(process=process, run_dir=run_dir)
    finally:
        process.kill()
        process.wait()


def test_output_and_logs_go_where_they_are_looked_for(slurm: Cluster, tmp_path: Path) -> None:
    """Rank 0 is on screen, every rank has its log, the state is shown, and the job's exit code is ours."""
    with launch(slurm, tmp_path, "fine", num_nodes=2, num_processes=2) as job:
        assert job.code() == 0, job.err
        assert "out of rank 0\n" in job.out
        assert "rank 1" not in job.out
        assert re.search(r"job \d+   (PENDING|RUNNING on h\[1-2\])", job.err)
        assert "error of rank 0 on h1" in job.log(0)
        assert "out of rank 1\nerror of rank 1 on h1" in job.log(1)
        assert "error of rank 3 on h2" in job.log(3)


def test_a_failing_rank_ends_the_job_with_its_traceback_last(slurm: Cluster, tmp_path: Path) -> None:
    """The others end at once, helpers too; the traceback is the last thing on screen, the code the rank's."""
    with launch(slurm, tmp_path, "fails", num_nodes=2) as job:
        assert job.code() == 1
        assert "rank 1 failed with exit code 1:" in job.out
        assert job.out.endswith("ArithmeticError: the cause\n")


def test_rank_zeros_last_words_are_shown_once_and_last(slurm: Cluster, tmp_path: Path) -> None:
    """What it writes on the way is shown at once; its last words only at the end."""
    with launch(slurm, tmp_path, "first_fails", num_nodes=2) as job:
        assert job.code() == 3
        assert job.out.index("on the way") < job.out.index("rank 0 failed with exit code 3:\nthe cause\n")
        assert job.out.count("the cause") == 1


def test_a_killed_rank_is_reported_as_killed(slurm: Cluster, tmp_path: Path) -> None:
    """The signal is named and the exit code is 128 + 9."""
    with launch(slurm, tmp_path, "is_killed", num_nodes=2) as job:
        assert job.code() == 128 + signal.SIGKILL
        assert "rank 1 was killed by SIGKILL:" in job.out


def test_the_cause_is_reported_and_not_its_consequence(slurm: Cluster, tmp_path: Path) -> None:
    """A rank that only lost its peer is not blamed, although it ends first."""
    with launch(slurm, tmp_path, "loses_peer", num_nodes=2) as job:
        assert job.code() == 1
        assert "rank 1 failed with exit code 1:" in job.out
        assert "rank 0 failed" not in job.out


def test_all_ranks_come_back_after_one_died(slurm: Cluster, tmp_path: Path) -> None:
    """In the same allocation, and from the checkpoint that was saved meanwhile."""
    with launch(slurm, tmp_path, "comes_back", num_nodes=2, max_restarts=1) as job:
        assert job.code() == 0, job.out
        assert "starting all ranks again (1 of 1)" in job.out
        assert f"rank 1 resumed {job.run_dir}" in job.log(1)


def test_a_job_goes_on_without_an_expendable_rank(slurm: Cluster, tmp_path: Path) -> None:
    """What the strategy can do without is not missed, and the others are left alone."""
    with launch(slurm, tmp_path, "is_done_without", num_nodes=2, expendable=[1]) as job:
        assert job.code() == 0, job.out
        assert "went on to its end" in job.out


def test_before_the_time_limit_ranks_save_and_the_job_comes_back(slurm: Cluster, tmp_path: Path) -> None:
    """The signal reaches the ranks alone; the job queues again and goes on from its checkpoint, one log."""
    with launch(slurm, tmp_path, "saves", num_nodes=2, time="2", signal_seconds=110) as job:
        assert job.code() == 0, job.out
        assert "its time is almost over" in job.out
        assert "rank 0 stops by SIGUSR1, resumed None" in job.log(0)
        assert f"rank 1 stops by None, resumed {job.run_dir}" in job.log(1)


def test_without_requeue_a_job_saves_and_ends(slurm: Cluster, tmp_path: Path) -> None:
    """It exits 0 with its checkpoint, and stays out of the queue."""
    with launch(slurm, tmp_path, "saves", time="2", signal_seconds=110, requeue=False) as job:
        assert job.code() == 0, job.out
        assert (job.run_dir / "checkpoints" / "step-00000001").exists()
        assert "back in the queue" not in job.out


SERVERS = {"num_nodes": 2, "servers": {"num_nodes": 1, "num_processes": 2, "partition": "last"}}


def test_servers_run_on_nodes_of_their_own(slurm: Cluster, tmp_path: Path) -> None:
    """The last ranks are on the other partition's node, and the job is one for whoever follows it."""
    with launch(slurm, tmp_path, "fine", **SERVERS) as job:
        assert job.code() == 0, job.err
        assert "out of rank 0\n" in job.out
        assert "error of rank 1 on h2" in job.log(1)
        assert "error of rank 2 on h3" in job.log(2)
        assert "error of rank 3 on h3" in job.log(3)


def test_a_server_that_fails_is_named_by_its_rank_in_the_whole_job(slurm: Cluster, tmp_path: Path) -> None:
    """srun counts the tasks of its own part; the ranks of both parts end at once."""
    with launch(slurm, tmp_path, "last_fails", **SERVERS) as job:
        assert job.code() == 1
        assert "rank 3 failed with exit code 1:" in job.out
        assert job.out.endswith("ArithmeticError: the cause\n")


def test_servers_come_back_with_the_others(slurm: Cluster, tmp_path: Path) -> None:
    """Before the time limit ranks of both parts are told; both queue again as one job."""
    with launch(slurm, tmp_path, "saves", time="2", signal_seconds=110, **SERVERS) as job:
        assert job.code() == 0, job.out
        assert "its time is almost over" in job.out
        for rank in range(4):
            assert f"rank {rank} stops by SIGUSR1, resumed None" in job.log(rank)
            assert f"rank {rank} stops by None, resumed {job.run_dir}" in job.log(rank)


def test_ctrl_c_cancels_the_job(slurm: Cluster, tmp_path: Path) -> None:
    """Nothing is left on any node, the ranks have been asked to save, and the exit code is 130."""
    with launch(slurm, tmp_path, "saves", num_nodes=2) as job:
        job.wait_ready(0, 1)
        job.process.send_signal(signal.SIGINT)
        assert job.code() == 130
        assert (job.run_dir / "checkpoints" / "step-00000001").exists()
        assert f"cancelling job {job.job()}" in job.err


def test_scancel_from_elsewhere_is_told_apart_from_a_failure(slurm: Cluster, tmp_path: Path) -> None:
    """The command that follows the job ends, says who ended it, and does not exit 0."""
    with launch(slurm, tmp_path, "saves", num_nodes=2) as job:
        job.wait_ready(0, 1)
        slurm.run("scancel", job.job())
        assert job.code() == 1
        assert f"job {job.job()} was cancelled" in job.err


def test_a_job_outlives_the_command_that_follows_it(slurm: Cluster, tmp_path: Path) -> None:
    """Killing it (or losing the connection to the login node) ends nothing."""
    with launch(slurm, tmp_path, "sleeps") as job:
        job.wait_ready(0)
        number = job.job()
        job.process.kill()
        job.process.wait()
        assert slurm.jobs() == [number]
        slurm.run("scancel", number)
        wait_until(lambda: not slurm.jobs())


def test_submitting_without_following(slurm: Cluster, tmp_path: Path) -> None:
    """The command ends at once with 0, and the job runs to its end."""
    with launch(slurm, tmp_path, "fine", follow=False) as job:
        assert job.code() == 0
        wait_until(lambda: not slurm.jobs(), seconds=LIMIT_SECONDS)
        assert "out of rank 0" in next((job.run_dir / "logs").glob("slurm-*.out")).read_text()


SALLOC = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "--no-shell")


@contextmanager
def allocation(slurm: Cluster) -> Iterator[tuple[str, ...]]:
    """What starts a command as in the shell that salloc opens on two nodes."""
    slurm.run(*SALLOC, "--job-name=shell")
    (number,) = slurm.run("squeue", "--noheader", "--name=shell", "--states=RUNNING", "--format=%i").split()
    try:
        yield ("env", f"SLURM_JOB_ID={number}", "SLURM_JOB_NUM_NODES=2")
    finally:
        slurm.run("scancel", number)


def test_inside_an_allocation_srun_is_started_directly(slurm: Cluster, tmp_path: Path) -> None:
    """No second job is submitted: the ranks run on the nodes that are there."""
    with (
        allocation(slurm) as inside,
        launch(slurm, tmp_path, "fine", prefix=inside, num_nodes=2) as job,
    ):
        assert job.code() == 0, job.err
        assert "out of rank 0\n" in job.out
        assert "error of rank 1 on h2" in job.log(1)
        assert not (job.run_dir / "slurm.sbatch").exists()


def test_servers_take_the_last_nodes_of_an_allocation(slurm: Cluster, tmp_path: Path) -> None:
    """Without components in it, the parts stand one behind the other on its nodes."""
    servers = {"num_nodes": 1, "servers": {"num_nodes": 1}}
    with allocation(slurm) as inside:
        nodes = (*inside, "SLURM_JOB_NODELIST=h[1-2]")
        with launch(slurm, tmp_path, "fine", prefix=nodes, **servers) as job:
            assert job.code() == 0, job.err
            assert "error of rank 0 on h1" in job.log(0)
            assert "error of rank 1 on h2" in job.log(1)


def test_servers_take_their_component_of_an_allocation(slurm: Cluster, tmp_path: Path) -> None:
    """In the shell that salloc opens on two kinds of nodes."""
    prefix = ("salloc", "--nodes=2", "--partition=main", ":", "--nodes=1", "--partition=last")
    servers = {"num_nodes": 2, "servers": {"num_nodes": 1}}
    with launch(slurm, tmp_path, "fine", prefix=prefix, **servers) as job:
        assert job.code() == 0, job.err
        assert "error of rank 1 on h2" in job.log(1)
        assert "error of rank 2 on h3" in job.log(2)


def test_ctrl_c_inside_an_allocation(slurm: Cluster, tmp_path: Path) -> None:
    """The ranks save and end, their helpers too; the allocation is kept."""
    with (
        allocation(slurm) as inside,
        launch(slurm, tmp_path, "saves", prefix=inside, num_nodes=2) as job,
    ):
        job.wait_ready(0, 1)
        job.process.send_signal(signal.SIGINT)
        assert job.code() == 130
        assert (job.run_dir / "checkpoints" / "step-00000001").exists()
        wait_until(lambda: not slurm.processes(str(tmp_path)))
        assert len(slurm.jobs()) == 1


def test_ranks_end_with_a_launcher_that_is_killed(slurm: Cluster, tmp_path: Path) -> None:
    """Inside an allocation nobody else would end them: they see that the launcher is gone."""
    with (
        allocation(slurm) as inside,
        launch(slurm, tmp_path, "sleeps", prefix=inside, num_nodes=2) as job,
    ):
        job.wait_ready(0, 1)
        job.process.kill()
        wait_until(lambda: not slurm.processes(str(tmp_path)))


def test_an_allocation_that_is_too_small(slurm: Cluster, tmp_path: Path) -> None:
    """It is said before anything starts."""
    with (
        allocation(slurm) as inside,
        launch(slurm, tmp_path, "fine", prefix=inside, num_nodes=3) as job,
    ):
        assert job.code() == 1
        assert "launcher.num_nodes=3: this allocation (job" in job.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "nowhere"}, "launcher.partition=nowhere: no such partition; there are: main, brief"),
        ({"num_nodes": 7}, "SLURM will never start job"),
        ({"num_processes": 9}, "sbatch failed with exit code 1"),
        ({"partition": "brief", "time": "60"}, "PartitionTimeLimit"),
        ({"constraint": "gpu"}, "sbatch failed with exit code 1"),
    ],
    ids=["partition", "nodes", "ranks", "time", "constraint"],
)
def test_what_the_cluster_does_not_have(
    slurm: Cluster, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """A partition, size or time that is not there is a clear error, and no job stays in the queue."""
    with launch(slurm, tmp_path, "fine", **settings) as job:
        assert job.code() == 1
        assert words in job.err
        assert slurm.jobs() == []


def test_a_hostile_run_directory_is_only_a_path(slurm: Cluster, tmp_path: Path) -> None:
    """Quotes, spaces, %, # and $() in it are taken as they stand, in the script and by SLURM."""
    folder = tmp_path / 'it\'s $(touch x) `touch y` "%j" #1; & é'
    folder.mkdir()
    with launch(slurm, folder, "fine") as job:
        assert job.code() == 0, job.err
        assert "out of rank 0\n" in job.out
    assert sorted(path.name for path in folder.iterdir()) == ["err", "out", "run"]
    assert not Path("x").exists()
    assert not Path("y").exists()
    assert os.listdir(folder / "run" / "logs")


def test_a_lost_node_sends_the_job_to_others(fragile: Cluster, tmp_path: Path) -> None:
    """A node without power: the job queues again and goes on from its checkpoint on those that are left."""
    with launch(fragile, tmp_path, "goes_on", num_nodes=2) as job:
        job.wait_ready(0, 1)
        fragile.lose("h2")
        assert job.code() == 0, job.out
        assert f"resumed {job.run_dir} on h3" in job.log(1)


def test_the_first_nodes_loss_sends_the_job_to_others(fragile: Cluster, tmp_path: Path) -> None:
    """The same where the script itself ran on the lost node: then SLURM puts the job back."""
    fragile.run("scontrol", "update", "nodename=h1", "state=drain", "reason=the controller's own")
    with launch(fragile, tmp_path, "goes_on", num_nodes=1) as job:
        job.wait_ready(0)
        fragile.lose("h2")
        assert job.code() == 0, job.out
        assert f"resumed {job.run_dir} on h3" in job.log(0)
