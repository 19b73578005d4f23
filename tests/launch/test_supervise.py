"""A job ends as a whole, says what ended it, and leaves nothing behind, however its ranks are started."""

from __future__ import annotations

import os
import pty
import re
import signal
from pathlib import Path

import pytest
from jobs import Job, job, wait_until

pytestmark = [pytest.mark.timeout(30), pytest.mark.slow]

STARTS = ["", "fork"]
"""Fresh processes, and forks of a server (which here has nothing to import)."""


@pytest.fixture(params=STARTS, ids=["popen", "forkserver"])
def preload(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_nothing_left(started: Job) -> None:
    wait_until(lambda: not started.processes(), seconds=5)


def test_output_goes_where_it_is_looked_for(tmp_path: Path, preload: str) -> None:
    """Rank 0 writes to the screen, all ranks to their logs, and a job that ends well exits 0."""
    with job(tmp_path, "standin", "fine", str(tmp_path), preload=preload) as started:
        ended = started.end()
        assert (ended.code, ended.out) == (0, "out of rank 0\n"), ended.err
        assert "error of rank 0" in ended.err
        assert "rank 1" not in ended.err
        assert "error of rank 0" in started.log(0)
        assert "out of rank 1\nerror of rank 1\n" in started.log(1)
        assert started.log(1).startswith("# ")


def test_a_failing_rank_ends_the_job_with_its_traceback_last(tmp_path: Path, preload: str) -> None:
    """The other ranks are ended in seconds; the last thing on screen is the failing rank's traceback."""
    with job(tmp_path, "standin", "fails", str(tmp_path), num_processes=3, preload=preload) as started:
        ended = started.end()
        assert ended.code == 1
        assert ended.seconds < 8
        report = ended.err[ended.err.index("rank 1 failed with exit code 1:") :]
        assert "Traceback" in report
        assert report.endswith("ArithmeticError: the cause\n")
        assert_nothing_left(started)


def test_rank_zeros_last_words_are_shown_once_and_last(tmp_path: Path, preload: str) -> None:
    """What rank 0 writes on the way is shown at once; its traceback only in the report at the end."""
    with job(tmp_path, "standin", "first_fails", str(tmp_path), preload=preload) as started:
        ended = started.end()
        assert ended.err.startswith("on the way\n")
        assert ended.err.count("ArithmeticError: the cause") == 1
        assert ended.err.endswith("ArithmeticError: the cause\n")
        assert started.log(0).count("ArithmeticError: the cause") == 1


def test_a_killed_rank_is_reported_as_killed(tmp_path: Path, preload: str) -> None:
    """A rank that dies by a signal leaves no traceback: the signal is named, the exit code is 128 + 9."""
    with job(tmp_path, "standin", "is_killed", str(tmp_path), preload=preload) as started:
        ended = started.end()
        assert ended.code == 128 + signal.SIGKILL
        assert "rank 1 was killed by SIGKILL:" in ended.err
        assert_nothing_left(started)


def test_the_cause_is_reported_and_not_its_consequence(tmp_path: Path) -> None:
    """A rank that only lost its peer is not blamed, although it ends first."""
    with job(tmp_path, "standin", "loses_peer", str(tmp_path)) as started:
        ended = started.end()
        assert ended.code == 1
        assert "rank 1 failed with exit code 1:" in ended.err
        assert "rank 0 failed" not in ended.err


def test_a_rank_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A failure ends the job within seconds even where a rank does not want to go."""
    with job(tmp_path, "standin", "is_stubborn", str(tmp_path)) as started:
        ended = started.end()
        assert ended.code == 3
        assert ended.seconds < 10
        assert_nothing_left(started)


def test_ctrl_c_ends_everything(tmp_path: Path, preload: str) -> None:
    """Ctrl-C ends ranks and their helpers within seconds, with exit code 130."""
    with job(tmp_path, "standin", "sleeps", str(tmp_path), preload=preload) as started:
        started.wait_ready()
        started.process.send_signal(signal.SIGINT)
        ended = started.end()
        assert ended.code == 130
        assert ended.seconds < 5
        assert_nothing_left(started)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_is_passed_on(tmp_path: Path, number: signal.Signals, preload: str) -> None:
    """SIGTERM and SIGUSR1 reach every rank, which saves and exits 0; then so does the launcher."""
    with job(tmp_path, "standin", "saves", str(tmp_path), preload=preload) as started:
        started.wait_ready()
        started.process.send_signal(number)
        ended = started.end()
        assert ended.code == 0, ended.err
        for rank in range(2):
            assert f"rank {rank} saved for {number.name}" in started.log(rank)


def test_ranks_die_with_a_launcher_that_is_killed(tmp_path: Path, preload: str) -> None:
    """SIGKILL cannot be passed on, and still no rank, helper or server outlives the launcher."""
    with job(tmp_path, "standin", "sleeps", str(tmp_path), preload=preload) as started:
        started.wait_ready()
        assert len(started.processes()) >= 5
        started.process.kill()
        assert_nothing_left(started)


def test_helpers_of_a_finished_rank_are_ended(tmp_path: Path) -> None:
    """What a rank started and forgot does not outlive a job that ended well."""
    with job(tmp_path, "standin", "leaves_helper", str(tmp_path)) as started:
        started.process.wait(20)
        assert_nothing_left(started)


def test_rank_zero_sees_the_terminal(tmp_path: Path, preload: str) -> None:
    """Rank 0 has the launcher's own terminal for its progress bar; the other ranks have a file."""
    screen, terminal = pty.openpty()
    try:
        with job(
            tmp_path, "standin", "shows_terminal", str(tmp_path), preload=preload, stdout=terminal
        ) as started:
            started.process.wait(20)
            assert "rank 0: terminal True" in started.log(0)
            assert "rank 1: terminal False" in started.log(1)
    finally:
        os.close(screen)
        os.close(terminal)


def test_a_job_goes_on_without_an_expendable_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death is said, and the job ends well when the others do."""
    monkeypatch.setenv("EXPENDABLE", "1")
    with job(tmp_path, "standin", "is_done_without", str(tmp_path)) as started:
        ended = started.end()
    assert ended.code == 0
    assert "notice: rank 1 was killed by SIGKILL; the job goes on without it" in ended.err


def test_a_job_without_any_rank_left_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every rank is expendable and all die, the job says why and does not exit 0."""
    monkeypatch.setenv("EXPENDABLE", "01")
    with job(tmp_path, "standin", "all_are_killed", str(tmp_path)) as started:
        ended = started.end()
    assert ended.code == 128 + signal.SIGKILL
    assert ended.err.count("the job goes on without it") == 2
    assert re.search(r"rank [01] was killed by SIGKILL:\n", ended.err)


@pytest.mark.parametrize(
    ("imports", "is_there"),
    [("no_such_module colorsys", True), ("colorsys threaded", False)],
    ids=["forked", "fresh"],
)
def test_what_the_model_imports_is_there_when_a_rank_is_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: str, is_there: bool
) -> None:
    """What cannot be imported is left to the ranks; a process with a thread is never forked."""
    monkeypatch.setenv("IMPORTS", imports)
    with job(tmp_path, "standin", "has_imported", preload="fork") as started:
        ended = started.end()
    assert ended.code == 0, ended.err
    assert ended.out == f"{is_there}\n"


def test_a_dead_rank_is_started_again_to_join_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: str
) -> None:
    """Each time it hears how often it has been; the others run on meanwhile."""
    monkeypatch.setenv("EXPENDABLE", "1")
    monkeypatch.setenv("REJOINS", "2")
    with job(tmp_path, "standin", "comes_back", str(tmp_path), preload=preload) as started:
        ended = started.end()
    assert ended.code == 0
    assert ended.err.count("notice: rank 1 was killed by SIGKILL; is started again") == 2
    assert {path.name for path in tmp_path.glob("back-*")} == {"back-0", "back-1", "back-2"}


def test_a_jobs_ranks_share_a_secret_that_no_other_job_has(tmp_path: Path, preload: str) -> None:
    """Nobody types it and no command line holds it."""
    tokens = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        with job(folder, "standin", "shows_token", str(folder), preload=preload) as started:
            assert started.end().code == 0
            shown = [re.findall(r"^token (\w+)$", started.log(rank), re.MULTILINE) for rank in range(2)]
        assert shown[0] == shown[1]
        tokens += shown[0]
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 32
