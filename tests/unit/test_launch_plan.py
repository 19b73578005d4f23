"""Planning a launch is pure: the same plan gives the same commands, as argument lists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distrib.errors import ConfigError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.local import Local
from distrib.launchers.network import reserved_port
from distrib.launchers.starting import environment
from distrib.world import World

PLAN = LaunchPlan.of_worker(Path("runs/a b"))


def test_one_command_per_rank_in_torchruns_names() -> None:
    """Every rank is told its place in the variables that torch itself reads."""
    commands = Local(num_processes=2, threads=3).plan(PLAN)
    assert [command.rank for command in commands] == [0, 1]
    assert {command.argv for command in commands} == {(sys.executable, "-m", "distrib.worker", "runs/a b")}
    assert commands[1].env == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "OMP_NUM_THREADS": "3",
    }


def test_threads_are_left_to_the_worker_by_default() -> None:
    """Without a number the plan sets none: the rank heeds the user's variable, or shares the cores."""
    (command,) = Local().plan(PLAN)
    assert "OMP_NUM_THREADS" not in command.env


def test_a_rank_reads_back_the_place_it_was_given() -> None:
    """What the launcher writes is what `World.from_env` reads."""
    worlds = [World.from_env(command.env) for command in Local(num_processes=3).plan(PLAN)]
    assert [(world.rank, world.size, world.local_rank, world.num_nodes) for world in worlds] == [
        (rank, 3, rank, 1) for rank in range(3)
    ]


def test_a_launcher_started_by_a_launcher_hides_the_outer_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank inherits the user's variables, but no outer launcher's rank or store."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("MINE", "kept")
    (command,) = Local().plan(PLAN)
    env = environment(command)
    assert env["MINE"] == "kept"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in env
    assert "SLURM_PROCID" not in env


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"num_processes": 0}, "launcher.num_processes=0"),
        ({"num_nodes": 2}, "launcher.num_nodes=2"),
        ({"threads": 0}, "launcher.threads=0"),
    ],
)
def test_what_cannot_be_started_is_refused_by_key(arguments: dict[str, int], key: str) -> None:
    """Numbers that make no job are refused before any process starts."""
    with pytest.raises(ConfigError, match=key):
        Local(**arguments)


def test_two_jobs_never_share_a_port() -> None:
    """A reserved port is bound already, so that nothing else on this host can take it."""
    with reserved_port(0) as one, reserved_port(0) as two:
        assert one.getsockname() != two.getsockname()
        with pytest.raises(OSError, match="in use"), reserved_port(one.getsockname()[1]):
            pass


def test_planning_imports_no_torch() -> None:
    """The command that launches starts fast: torch is imported where it is used."""
    code = (
        "import sys, distrib.launchers.local, distrib.launchers.supervise, distrib.launchers.forkserver\n"
        "import distrib.worker, distrib.rendezvous\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
