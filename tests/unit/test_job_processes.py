"""What belongs to a job is found by the job's own name, and only that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from distrib.launchers.job_processes import JOB, kill_all, machine, members

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes' variables are read from /proc")


@pytest.fixture
def sleepers() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """One process of each of two jobs, and one of none."""
    names = {"one": {JOB: "one"}, "two": {JOB: "two"}, "none": {}}
    found = {
        name: subprocess.Popen(["sleep", "60"], env={**os.environ, **env}, start_new_session=True)
        for name, env in names.items()
    }
    yield found
    for process in found.values():
        process.kill()
        process.wait()


def test_only_the_jobs_own_processes_are_ended(sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    """Neither another job's nor anybody else's, though the program has the same name."""
    assert members("one") == [sleepers["one"].pid]
    kill_all([], job="one")
    assert sleepers["one"].wait(10) == -signal.SIGKILL
    assert (sleepers["two"].poll(), sleepers["none"].poll()) == (None, None)
    assert members("one") == []


def test_groups_are_ended_without_a_name(sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    """What an agent started itself it knows by number; one that is gone already is no error."""
    kill_all([sleepers["none"].pid, 2**22 - 3], job=None)
    assert sleepers["none"].wait(10) == -signal.SIGKILL
    assert sleepers["one"].poll() is None


def test_a_machine_knows_itself() -> None:
    """Two processes on one machine agree on which it is."""
    code = "from distrib.launchers.job_processes import machine; print(machine())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == machine()
