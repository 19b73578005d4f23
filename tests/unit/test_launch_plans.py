"""Launchers for several hosts plan argument lists, of which no shell reads a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigError, LaunchError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.forwarding import forwarded, identity
from distrib.launchers.horovodrun import Horovodrun
from distrib.launchers.horovodrun import commands as horovodrun_commands
from distrib.launchers.hosts import Host
from distrib.launchers.mpirun import Mpirun
from distrib.launchers.network import Link
from distrib.launchers.ssh import SSH
from distrib.launchers.torchrun import Torchrun
from distrib.world import World

HOSTILE = "runs/a b;$(reboot)'\"`x`"
SECRET = "s3cret'; reboot"
PLAN = LaunchPlan(run_dir=Path(HOSTILE), argv=("python", "-m", "distrib.worker", HOSTILE), master_port=7)
ALL = [SSH, Torchrun, Mpirun, Horovodrun]


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    file = tmp_path / "hosts"
    file.write_text("h1 slots=2\nh2 slots=2\nh3 slots=2\n")
    return str(file)


@pytest.mark.parametrize("make", ALL)
def test_planning_is_pure(make: Callable[..., Launcher], hosts: str) -> None:
    """The same plan gives the same commands; a path with any sign in it stays one argument."""
    launcher = make(hosts=hosts, num_processes=2, num_nodes=2)
    commands = launcher.plan(PLAN)
    assert commands == launcher.plan(PLAN)
    assert all(command.argv[-1] == HOSTILE for command in commands)
    assert all(isinstance(word, str) for command in commands for word in command.argv)


@pytest.mark.parametrize("make", ALL)
def test_values_of_variables_are_in_no_command(make: Callable[..., Launcher], hosts: str) -> None:
    """A secret is handed over in the environment, where no list of processes shows it."""
    plan = LaunchPlan(run_dir=Path("r"), argv=("w",), env={"DISTRIB_TOKEN": SECRET})
    for command in make(hosts=hosts, num_processes=2).plan(plan):
        assert command.env["DISTRIB_TOKEN"] == SECRET
        assert not [word for word in command.argv if "s3cret" in word]


def test_ssh_tells_every_rank_its_place(hosts: str) -> None:
    """Two ranks on each of three hosts, in torchrun's names."""
    commands = SSH(hosts=hosts, num_processes=2).plan(PLAN)
    assert [(command.rank, command.host) for command in commands] == [
        (0, "h1"), (1, "h1"), (2, "h2"), (3, "h2"), (4, "h3"), (5, "h3"),
    ]  # fmt: skip
    world = World.from_env(commands[3].env)
    assert (world.rank, world.size, world.local_rank, world.node, world.num_nodes) == (3, 6, 1, 1, 3)
    assert (world.master_address, world.master_port) == ("h1", 7)


def option(command: Command, name: str) -> str:
    return command.argv[command.argv.index(name) + 1]


def test_the_programs_are_told_hosts_and_numbers(hosts: str) -> None:
    """torchrun once per host; mpirun and horovodrun once, with the hosts and how many ranks each takes."""
    nodes = Torchrun(hosts=hosts, num_processes=2).plan(PLAN)
    assert [option(node, "--node-rank") for node in nodes] == ["0", "1", "2"]
    assert {option(node, "--max-restarts") for node in nodes} == {"0"}
    (mpirun,) = Mpirun(hosts=hosts, num_processes=2, num_nodes=2).plan(PLAN)
    assert (option(mpirun, "-np"), option(mpirun, "--host")) == ("4", "h1:2,h2:2")
    (horovodrun,) = Horovodrun(hosts=hosts, num_processes=2, num_nodes=2).plan(PLAN)
    assert (option(horovodrun, "-np"), option(horovodrun, "-H")) == ("4", "h1:2,h2:2")


def test_all_that_a_remote_shell_reads_is_the_interpreters_path(hosts: str) -> None:
    """ssh never asks, trusts no unknown host, and is given a constant command."""
    argv = SSH(hosts=hosts, python="/opt/py/bin/python3").cluster.agent(Host(name="me@h1"))
    assert argv[-5:] == ["--", "me@h1", "/opt/py/bin/python3", "-m", "distrib.launchers.agent"]
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes"} <= set(argv)


@pytest.mark.parametrize(
    ("make", "settings", "key"),
    [
        (SSH, {"python": "python; reboot"}, "launcher.python"),
        (SSH, {"python": "$(reboot)"}, "launcher.python"),
        (SSH, {"python": "-c"}, "launcher.python"),
        (SSH, {"interface": "eth0 --x"}, "launcher.interface"),
        (Mpirun, {"interface": "eth0;x"}, "launcher.interface"),
        (Mpirun, {"ssh_config": "a b"}, "launcher.ssh_config"),
        (Torchrun, {"ssh_config": "-oProxyCommand=x"}, "launcher.ssh_config"),
        (SSH, {"num_processes": 3}, "launcher.num_processes"),
        (SSH, {"num_processes": 0}, "launcher.num_processes"),
        (SSH, {"num_nodes": 4}, "launcher.num_nodes"),
        (Torchrun, {"num_nodes": 0}, "launcher.num_nodes"),
        (Mpirun, {"threads": 0}, "launcher.threads"),
        (SSH, {"max_restarts": -1}, "launcher.max_restarts"),
        (SSH, {"rejoins": -1}, "launcher.rejoins"),
    ],
)
def test_what_makes_no_job_is_refused_by_key(
    make: Callable[..., Launcher], settings: dict[str, Any], key: str, hosts: str
) -> None:
    """Before anything is started, and whatever it would have been in a shell."""
    with pytest.raises(ConfigError, match=key):
        make(hosts=hosts, **settings)


@pytest.mark.parametrize("make", [Torchrun, Mpirun, Horovodrun])
def test_several_machines_take_a_hosts_file(make: Callable[..., Launcher]) -> None:
    """Without one, the job is on this machine."""
    assert (make(num_processes=3).num_nodes, make().num_processes) == (1, 1)
    with pytest.raises(ConfigError, match=r"launcher\.num_nodes=2: several machines take launcher\.hosts"):
        make(num_nodes=2)


@pytest.mark.parametrize("make", [Mpirun, Horovodrun])
def test_a_user_that_a_program_does_not_read_is_refused(
    make: Callable[..., Launcher], tmp_path: Path
) -> None:
    """mpirun and horovodrun take names only."""
    (tmp_path / "hosts").write_text("me@h1\n")
    with pytest.raises(ConfigError, match="takes no user"):
        make(hosts=str(tmp_path / "hosts"))


def test_horovodrun_needs_one_name_of_the_interface(hosts: str) -> None:
    """It gives all ranks the same; where hosts differ, each name is said, and who can do it."""
    cluster = Horovodrun(hosts=hosts, num_nodes=2).cluster
    addresses = ("10.0.0.1", "10.0.0.2")
    alike = Link(network="10.0.0.0/24", addresses=addresses, names=("eth0", "eth0"))
    (command,) = horovodrun_commands(cluster, PLAN, alike)
    assert option(command, "--network-interfaces") == "eth0"
    with pytest.raises(LaunchError, match="eth0 on h1, lan7 on h2: choose launcher=ssh"):
        horovodrun_commands(cluster, PLAN, replace(alike, names=("eth0", "lan7")))


def test_settings_go_along_and_the_rest_stays_here() -> None:
    """Libraries' variables reach another host; the terminal's, ssh's and an outer launcher's do not."""
    ours = {
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/x",
        "SSH_AUTH_SOCK": "/y",
        "HOME": "/z",
        "DISTRIB_TOKEN": "old",
        "HOROVOD_RANK": "1",
    }
    assert forwarded(ours) == {"NCCL_DEBUG": "INFO", "HF_HOME": "/x"}


def test_every_start_is_a_job_of_its_own() -> None:
    """Two attempts share neither name nor token, and say which they are."""
    one, two = (identity(attempt=attempt, resume=None) for attempt in (0, 1))
    assert all(one[name] != two[name] for name in one)
    assert "DISTRIB_RESUME" not in one


def test_mpiruns_own_daemons_carry_the_jobs_name(hosts: str) -> None:
    """By which the agent on a host that was cut off finds and ends what mpirun started there."""
    named = LaunchPlan(run_dir=Path("r"), argv=("w",), env={"DISTRIB_JOB": "ab12"})
    (command,) = Mpirun(hosts=hosts).plan(named)
    place = command.argv.index("orte_launch_agent")
    assert command.argv[place - 1 : place + 2] == ("--mca", "orte_launch_agent", "env DISTRIB_JOB=ab12 orted")
