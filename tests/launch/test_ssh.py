"""The ssh launcher on a real sshd: what a rank is told and says, how a job ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jobs import HERE, Job, wait_until
from sshd import Sshd, absent, sshd

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.slow,
    pytest.mark.skipif(absent(), reason="sshd and ssh are not installed (.ci/cluster installs them)"),
]

Start = Callable[..., AbstractContextManager[Job]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("ssh") / "server"
    with sshd(folder, path=f"{HERE}:{HERE.parents[1]}") as up:
        yield up


@pytest.fixture
def start(server: Sshd, tmp_path: Path) -> Start:
    @contextmanager
    def job(
        *module: str, hosts: str = "n1\nn2\n", env: dict[str, str] | None = None, **settings: Any
    ) -> Iterator[Job]:
        (tmp_path / "hosts").write_text(hosts)
        told = {"hosts": str(tmp_path / "hosts"), "ssh_config": str(server.config), "threads": 1, **settings}
        process = subprocess.Popen(
            [sys.executable, str(HERE / "start_ssh.py"), str(tmp_path), json.dumps(told), *module],
            env={
                **os.environ,
                "PYTHONPATH": f"{HERE}:{HERE.parents[1]}",
                "DISTRIB_TEST_FOLDER": str(tmp_path),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Agents have what sshd gives them, ranks what goes along with the launcher's own variables.
        marks = {"DISTRIB_TEST_FOLDER": str(tmp_path), "SSHD_FOLDER": str(server.folder)}
        started = Job(process=process, folder=tmp_path, num_processes=2, marks=marks)
        try:
            yield started
        finally:
            process.kill()
            process.communicate()
            for left in started.processes():
                left.kill()

    return job


def assert_nothing_left(started: Job) -> None:
    wait_until(lambda: not started.processes())


def test_ranks_run_and_their_words_come_back(start: Start, tmp_path: Path) -> None:
    """Rank 0 writes to the screen, every other line has host and rank in front, every rank has its log."""
    with start("standin", "fine", str(tmp_path)) as started:
        ended = started.end()
        assert ended.code == 0, ended.err
        assert ended.out == "out of rank 0\n"
        assert "ranks meet at    127.0.0.1:" in ended.err
        assert "[n1 rank 0] error of rank 0\n" in ended.err
        assert "[n2 rank 1] out of rank 1\n" in ended.err
        assert "error of rank 1" in started.log(1)
        assert_nothing_left(started)


def test_no_shell_reads_an_argument_or_a_variable(start: Start, tmp_path: Path) -> None:
    """Whatever signs are in them, they arrive as they were, and nothing in them is run."""
    odd = "a b;$(touch pwned)`touch pwned`'\"\\ü\n*"
    with start("standin", "echoes", odd, env={"HF_ODD": odd}) as started:
        ended = started.end()
        assert ended.code == 0, ended.err
        assert json.loads(ended.out) == [odd, odd, "3"]
        assert not list(tmp_path.rglob("pwned"))


def test_the_failing_ranks_traceback_comes_last(start: Start, tmp_path: Path) -> None:
    """A rank on another host fails: all the others are ended, and its traceback is the end of the screen."""
    with start("standin", "fails", str(tmp_path), num_processes=1) as started:
        ended = started.end()
        assert ended.code == 1
        assert "rank 1 failed with exit code 1:" in ended.err
        assert ended.err.endswith("ArithmeticError: the cause\n")
        assert_nothing_left(started)


def test_a_killed_rank_is_reported_as_killed(start: Start, tmp_path: Path) -> None:
    """Its signal comes back over ssh."""
    with start("standin", "is_killed", str(tmp_path)) as started:
        ended = started.end()
        assert ended.code == 128 + signal.SIGKILL
        assert "rank 1 was killed by SIGKILL:" in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_is_passed_on(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGUSR1 reach every rank on every host, which saves and exits 0."""
    with start("standin", "saves", str(tmp_path)) as started:
        started.wait_ready()
        started.process.send_signal(number)
        ended = started.end()
        assert ended.code == 0, ended.err
        assert f"[n2 rank 1] rank 1 saved for {number.name}" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_launcher(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """After Ctrl-C, and after a SIGKILL that it cannot pass on, no agent, rank or helper is left anywhere."""
    with start("standin", "sleeps", str(tmp_path)) as started:
        started.wait_ready()
        assert len(started.processes()) >= 7  # the launcher, two agents, two ranks with a helper each
        started.process.send_signal(number)
        started.process.wait(20)
        assert_nothing_left(started)


def test_a_job_is_started_again(start: Start, tmp_path: Path) -> None:
    """A rank that dies in the first attempt only: the second one ends well, under another name and token."""
    with start("standin", "fails_once", str(tmp_path), max_restarts=1) as started:
        ended = started.end()
        assert ended.code == 0, ended.err
        assert "notice: restart 1 of 1, from the beginning: no checkpoint yet" in ended.err
        tokens = {line for line in started.log(0).splitlines() if line.startswith("token ")}
        assert len(tokens) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hosts": "n1\nabsent.invalid\n"}, ["host absent.invalid: its agent ended", "absent.invalid"]),
        ({"hosts": "n1\nstranger\n"}, ["host stranger", "Host key verification failed"]),
        ({"hosts": "n1\nrefused\n"}, ["host refused", "Permission denied (publickey)"]),
        ({"python": "/nowhere/python"}, ["host n1", "host n2", "/nowhere/python"]),
        ({"python": "/usr/bin/env"}, ["host n1", "agent ended"]),
    ],
    ids=["unknown host", "unknown host key", "refused key", "no interpreter", "no package"],
)
def test_a_host_that_does_not_fit_is_named(
    start: Start, tmp_path: Path, settings: dict[str, Any], says: list[str]
) -> None:
    """In ssh's or the host's own words; no rank was started anywhere and nothing is left."""
    with start("standin", "fine", str(tmp_path), **settings) as started:
        ended = started.end()
        assert ended.code == 1
        for words in says:
            assert words in ended.err
        assert not list(tmp_path.glob("logs/rank-*"))
        assert_nothing_left(started)


def test_a_reserve_stands_in(start: Start, tmp_path: Path) -> None:
    """With more hosts than nodes, one that does not answer is replaced, and the user hears of it."""
    with start("standin", "fine", str(tmp_path), hosts="n1\nstranger\nn2\n", num_nodes=2) as started:
        ended = started.end()
        assert ended.code == 0, ended.err
        assert "[n2 rank 1] out of rank 1" in ended.err
        assert "n2 stands in" in ended.err
