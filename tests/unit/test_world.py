"""A process learns its place from whichever launcher started it, and contradictions are named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distrib.errors import LaunchError
from distrib.rank_variables import RANK_VARIABLES
from distrib.world import World

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "h1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
HOROVOD = {
    "HOROVOD_RANK": "5",
    "HOROVOD_SIZE": "8",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "4",
    "HOROVOD_CROSS_RANK": "1",
    "HOROVOD_CROSS_SIZE": "2",
    "MASTER_ADDR": "h1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "h1",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "h[1-2]",
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    "environ", [TORCHRUN, HOROVOD, OPEN_MPI, SLURM], ids=["torchrun", "horovod", "openmpi", "slurm"]
)
def test_every_launcher_says_the_same(environ: dict[str, str]) -> None:
    """The sixth of eight ranks on two hosts of four is the same place under any launcher."""
    world = World.from_env(environ)
    place = (world.rank, world.size, world.local_rank, world.local_size, world.node, world.num_nodes)
    assert place == (5, 8, 1, 4, 1, 2)
    assert world.master_address == "h1"
    assert world.master_port is not None


def test_no_launcher_is_a_world_of_one() -> None:
    """Without any launcher's variables there is one rank, which has nobody to meet."""
    assert World.from_env({"HOME": "/root"}) == World()


def test_torchrun_serves_the_store_and_counts_attempts() -> None:
    """Under torchrun the agent serves the store, and a restarted job has another name in it."""
    first, second = (World.from_env({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": n}) for n in "01")
    assert first.store_is_served
    assert first.attempt != second.attempt


def test_torchrun_inside_srun_wins() -> None:
    """Launchers nest; the inner one has numbered the processes."""
    assert World.from_env({**SLURM, **TORCHRUN, "RANK": "2", "LOCAL_RANK": "2", "GROUP_RANK": "0"}).rank == 2


def test_a_batch_script_is_not_a_rank() -> None:
    """SLURM sets a rank for the batch script too, but only srun starts the others."""
    assert World.from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == World()


def test_uneven_nodes_of_slurm() -> None:
    """Each node's own count is read from SLURM's run-length list."""
    environ = {
        **SLURM,
        "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
        "SLURM_STEP_NUM_NODES": "3",
        "SLURM_NODEID": "2",
    }
    assert World.from_env({**environ, "SLURM_PROCID": "7"}).local_size == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("h1,h7", "h1"), ("h[3,5-9]", "h3"), ("gpu-[007-012]", "gpu-007"), ("a[2-3],b1", "a2")],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    """Rank 0 is on the first host of the step's list, which SLURM abbreviates."""
    assert World.from_env({**SLURM, "SLURM_STEP_NODELIST": nodes}).master_address == first


def test_jobs_on_one_host_use_different_ports() -> None:
    """Without MASTER_PORT the port follows from the job: equal in its ranks, different between jobs."""
    ports = [World.from_env({**SLURM, "SLURM_JOB_ID": job}).master_port for job in ("71", "71", "72")]
    assert ports[0] == ports[1] != ports[2]
    assert all(20000 <= port < 32768 for port in ports if port)


def test_one_host_needs_no_address() -> None:
    """Where all ranks are on this host they meet on the loopback interface."""
    environ = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "5"}
    del environ["MASTER_ADDR"]
    assert World.from_env(environ).master_address == "127.0.0.1"


def test_the_process_environment_is_read_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.environ` refuses questions a dict would answer: Open MPI, which has no variable for the node."""
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    assert World.from_env() == World.from_env(OPEN_MPI)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "1"}, ["RANK=1", "WORLD_SIZE is not set"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "RANK is not set"]),
        ({**TORCHRUN, "RANK": "8"}, ["contradict", "RANK=8", "WORLD_SIZE=8"]),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, ["contradict", "LOCAL_RANK=4", "LOCAL_WORLD_SIZE=4"]),
        ({**TORCHRUN, "RANK": "one"}, ["RANK=one", "not a number"]),
        ({**TORCHRUN, "MASTER_PORT": "-1"}, ["MASTER_PORT=-1", "not a number"]),
        ({**HOROVOD, "MASTER_ADDR": ""}, ["Horovod", "8 processes on 2 hosts", "MASTER_ADDR"]),
        ({**SLURM, "SLURM_NODEID": "3"}, ["SLURM_STEP_TASKS_PER_NODE=4(x2)", "node 3"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, ["contradict", "LOCAL_WORLD_SIZE=0"]),
    ],
)
def test_contradictions_are_named(environ: dict[str, str], words: list[str]) -> None:
    """Variables that are missing, no numbers or impossible together stop the process by name."""
    with pytest.raises(LaunchError) as caught:
        World.from_env(environ)
    for word in words:
        assert word in str(caught.value)


def test_every_variable_read_is_known_to_launchers() -> None:
    """A launcher inside another one can take all of the outer one's variables away."""
    for environ in (TORCHRUN, HOROVOD, OPEN_MPI):
        assert environ.keys() <= RANK_VARIABLES
        assert World.from_env({k: v for k, v in environ.items() if k not in RANK_VARIABLES}) == World()


def test_the_device_is_found_without_torch_where_there_is_none() -> None:
    """A machine without an accelerator's device file is not made to import torch to say so."""
    code = (
        "import sys, distrib.world as w; w._may_have_gpu = lambda: False\n"
        "assert w.World().on_device().device == 'cpu'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_an_elastic_job_has_no_address_where_all_meet() -> None:
    """Ranks that come later cannot meet the others, so nobody is asked where rank 0 is."""
    world = World.from_env({**HOROVOD, "MASTER_ADDR": "", "HOROVOD_ELASTIC": "1"})
    assert world.elastic
    assert world.master_address is None
    assert not World.from_env(HOROVOD).elastic
    assert "HOROVOD_ELASTIC" in RANK_VARIABLES
