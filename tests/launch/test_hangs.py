"""Ranks that do not go on together are named, with what each was doing; and nothing is left running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs import Ended, Job, job

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

NAMED_WELL_BEFORE = 100.0
"""Seconds of ``timeouts.collective`` where nothing should wait for that long: the job ends first."""


def ended(folder: Path, behaviour: str, *, check: str = "2", limit: float, num_processes: int = 2) -> Ended:
    """How a job of ``hanging`` ends; fails where a process of it is left."""
    arguments = ["hanging", behaviour, str(folder), check, str(limit)]
    with job(folder, *arguments, preload="torch", num_processes=num_processes) as started:
        out, err = started.process.communicate(timeout=NAMED_WELL_BEFORE - 10)
        assert not started.processes()
    return Ended(code=started.process.returncode, out=out, err=err, seconds=0.0)


def last_words(done: Ended) -> str:
    """What stands on screen after the line that says which rank failed."""
    assert done.code == 1, done.err
    _, mark, words = done.err.rpartition(" failed with exit code 1:\n")
    assert mark, done.err
    return words


def test_a_dtype_that_differs_is_named_before_garbage_is_computed(tmp_path: Path) -> None:
    """In the checked steps, equal bytes of another dtype: gloo alone would add them up as numbers."""
    words = last_words(ended(tmp_path, "dtype", check="null", limit=NAMED_WELL_BEFORE))
    assert words.startswith("the ranks do not call the same collective operation:\n")
    assert "rank 1 calls all_reduce of int32[10]" in words
    assert "rank 0 calls all_reduce of float32[10]" in words
    assert "in dtype: dist.all_reduce(" in words
    assert "Every rank has to call the same operations in the same order" in words


@pytest.mark.full
@pytest.mark.parametrize(
    ("behaviour", "call"), [("shape", "all_reduce of float32[12]"), ("order", "broadcast of float32[10]")]
)
def test_a_checked_call_that_differs_names_the_one_rank_of_three(
    tmp_path: Path, behaviour: str, call: str
) -> None:
    """In the checked steps, the rank that differs stands first, and the others together."""
    done = ended(tmp_path, behaviour, check="null", limit=NAMED_WELL_BEFORE, num_processes=3)
    lines = last_words(done).splitlines()
    assert lines[1:3] == [f"  rank 1 calls {call}", "  ranks 0, 2 call all_reduce of float32[10]"]


def test_an_unchecked_call_in_another_order_is_named_long_before_the_time_limit(tmp_path: Path) -> None:
    """After the checked steps, ranks that wait for each other compare what they wait in."""
    words = last_words(ended(tmp_path, "order", limit=NAMED_WELL_BEFORE))
    assert "rank 1 calls broadcast of float32[10]" in words
    assert "rank 0 calls all_reduce of float32[10]" in words


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_an_unchecked_shape_that_differs_is_named_where_gloo_aborts(
    tmp_path: Path, num_processes: int
) -> None:
    """After the checked steps: the words come before C++ ends the process, or before ranks wait for ever."""
    done = ended(tmp_path, "shape", limit=NAMED_WELL_BEFORE, num_processes=num_processes)
    words = last_words(done)
    assert "rank 1 calls all_reduce of float32[12]" in words
    assert "all_reduce of float32[10]" in words


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_an_unchecked_dtype_that_differs_is_named_though_nobody_waits(
    tmp_path: Path, num_processes: int
) -> None:
    """gloo adds equal bytes up as numbers of its rank's own dtype, and every rank goes on."""
    done = ended(tmp_path, "differs", limit=NAMED_WELL_BEFORE, num_processes=num_processes)
    words = last_words(done)
    assert words.startswith("the ranks do not call the same collective operation:\n")
    assert "rank 1 calls all_reduce of int32[10]" in words
    assert "all_reduce of float32[10]" in words
    assert "Found after step 20;" in words


def test_ranks_that_agree_go_on(tmp_path: Path) -> None:
    """Compared again and again."""
    assert ended(tmp_path, "agrees", limit=NAMED_WELL_BEFORE).code == 0


def test_a_rank_that_has_said_why_it_failed_ends_at_once() -> None:
    """Tidying up would keep the launcher, and the user, from its words."""
    program = "import atexit, time; from distrib import worker; atexit.register(time.sleep, 60)"
    command = [sys.executable, "-c", f"{program}; print('said'); worker.end(3)"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (3, "said\n")


def test_a_rank_stuck_in_python_is_named_with_its_stack(tmp_path: Path) -> None:
    """At ``timeouts.collective``: who did not come, at which line it is, and its stack in its log."""
    arguments = ["hanging", "stuck", str(tmp_path), "2", "2"]
    with job(tmp_path, *arguments, preload="torch") as started:
        out, err = started.process.communicate(timeout=90)
        done = Ended(code=started.process.returncode, out=out, err=err, seconds=0.0)
    words = last_words(done)
    assert words.startswith("a collective operation took longer than 2 s (timeouts.collective) on rank 0\n")
    assert "rank 1 did not come: it is at" in words
    assert "in wait_for_godot: time.sleep(0.01)" in words
    assert "all_reduce of float32[10]" in words
    assert_stacks_in_log(started)


def assert_stacks_in_log(started: Job) -> None:
    """The stuck rank's own log has the stacks of all its threads."""
    log = started.log(1)
    assert "a rank asks where the others are; the stack of every thread of this rank" in log
    assert " in wait_for_godot\n" in log


@pytest.mark.full
def test_a_stopped_rank_is_the_one_that_does_not_answer(tmp_path: Path) -> None:
    """SIGSTOP, a host that is cut off: it cannot say where it is, which is what is said."""
    words = last_words(ended(tmp_path, "stopped", limit=3, num_processes=3))
    assert "no answer from rank 1: stopped, cut off from the network" in words


@pytest.mark.full
def test_a_stopped_first_rank_is_told_by_its_silent_store(tmp_path: Path) -> None:
    """Rank 0 serves the store: without it the others name it, its address, and where they stand."""
    words = last_words(ended(tmp_path, "first_stopped", limit=3, num_processes=3))
    assert "rank 0 does not answer at 127.0.0.1:" in words
    assert "all_reduce of float32[10]" in words


@pytest.mark.full
def test_a_checked_call_that_a_rank_does_not_make_names_it(tmp_path: Path) -> None:
    """The same where the call is still being compared, and torch has not recorded it."""
    words = last_words(ended(tmp_path, "stuck", check="null", limit=3, num_processes=3))
    assert "rank 1 did not come: it is at" in words
    assert "a collective operation that the others have not called" in words


@pytest.mark.full
def test_a_job_without_a_step_is_noticed_and_goes_on(tmp_path: Path) -> None:
    """All ranks busy for longer than the limit, none waiting: a notice with their places, and no end."""
    done = ended(tmp_path, "all_stuck", limit=2)
    assert done.code == 0
    assert "notice: rank 0 has made no optimizer step for" in done.err
    assert done.err.count("in wait_for_godot: time.sleep(0.01)") >= 2


@pytest.mark.full
@pytest.mark.parametrize("check", ["2", "null"])
def test_a_rank_that_dies_is_still_blamed_itself(tmp_path: Path, check: str) -> None:
    """Its own traceback ends the job: the others' loss of a peer is not taken for a hang."""
    done = ended(tmp_path, "dies", check=check, limit=NAMED_WELL_BEFORE)
    assert "rank 1 failed with exit code 1:" in done.err
    assert done.err.endswith("ArithmeticError: the cause\n")
