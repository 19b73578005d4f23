"""The screen: plain lines off a terminal, a live bar on one, the next commands at the end."""

from __future__ import annotations

import io
import os
import pty
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest
from synthetic import info, record, report, write_run

from distrib.tracking.closing import continue_command, use_command
from distrib.tracking.console import Console
from distrib.tracking.meter import Meter
from distrib.tracking.text import bytes_text, clock_text, number_text, short_text


def log_of(run_dir: Path) -> str:
    return (run_dir / "logs" / "rank-0.log").read_text()


def test_plain_lines_come_by_the_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal: the first step, the last step, and none in between before the time is up."""
    write_run(Console(every_seconds=3600), info(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/40", "40/40"]
    for name in ("loss ", "lr 0.0001", "examples/s 64", "tokens/s 8k", "memory 1.2 GB", "left 0:00"):
        assert name in lines[-1]


def test_the_log_holds_what_the_screen_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of the screen is in ``logs/rank-0.log``, what was said before the start included."""
    console = Console(every_seconds=0)
    console.notice("resumed after step 0")
    write_run(console, info(tmp_path))
    screen, log = capsys.readouterr().out, log_of(tmp_path)
    assert [line.strip() for line in screen.splitlines()] == [line.strip() for line in log.splitlines()]
    assert "notice: resumed after step 0" in log
    assert "\x1b" not in screen + log


def test_the_end_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out metrics, a row per class, run directory, page, and commands that can be pasted."""
    monkeypatch.chdir(tmp_path)
    write_run(Console(), info(tmp_path / "runs" / "a b"))
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["sport", "0.900", "0.900", "0.900", "10"] in rows
    assert "accuracy 0.8" in out
    assert "page            runs/a b/report.html" in out
    assert "distrib train 'resume=runs/a b' train.steps=80" in out
    assert "distrib predict 'runs/a b' --text \"…\"" in out


@pytest.mark.parametrize(
    ("train", "done", "expected"),
    [
        ({"steps": 40}, 40, "train.steps=80"),
        ({"epochs": 1.5}, 40, "train.epochs=3"),
        ({"steps": 40}, 13, ""),
        ({"steps": 40, "stop_after": 13}, 13, "train.stop_after=null"),
    ],
)
def test_the_command_that_continues(
    tmp_path: Path, train: dict[str, float], done: int, expected: str
) -> None:
    """A stopped run goes on to its end; a finished one twice as far, in the unit its config uses."""
    command = continue_command(info(tmp_path, config={"train": train}), steps=done)
    assert shlex.split(command) == ["distrib", "train", f"resume={tmp_path}", *expected.split()]


def test_a_stopped_run_says_by_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The signal, the step it stopped at, and the command that goes on to the planned end."""
    console = Console()
    write_run(console, info(tmp_path), last=13)
    console.finish({"steps": 13, "stopped_by": "SIGTERM"})
    console.close()
    out = capsys.readouterr().out
    assert "stopped by      SIGTERM, after step 13 of 40" in out
    assert f"distrib train resume={tmp_path}\n" in out


def test_the_commands_name_the_plugins(tmp_path: Path) -> None:
    """A run whose classes come from another package is continued and used with that package allowed."""
    facts = info(tmp_path, config={"train": {"steps": 40}, "plugins": ["mine", "yours"]})
    assert shlex.split(continue_command(facts, steps=40))[-1] == "plugins=[mine,yours]"
    assert shlex.split(use_command(facts))[3:7] == ["--plugin", "mine", "--plugin", "yours"]


def test_markup_in_a_name_is_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class or notice with square brackets reads as it was written."""
    console = Console()
    console.notice("[red]label [/nothing]")
    write_run(console, info(tmp_path), labels=["[bold]x[/bold]", "[/oops]", "tech"])
    out = capsys.readouterr().out
    for text in ("[red]label [/nothing]", "[bold]x[/bold]", "[/oops]"):
        assert text in out


def test_many_classes_do_not_flood_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond 40 classes the rest is counted and left to the page."""
    write_run(Console(), info(tmp_path), labels=[f"class-{number:03}" for number in range(100)])
    out = capsys.readouterr().out
    assert "class-039" in out
    assert "class-040" not in out
    assert "and 60 more classes" in out


def test_the_log_is_closed_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`close` without `finish` ends cleanly, twice as well, and prints no success."""
    console = Console()
    console.start(info(tmp_path))
    console.step(record(1))
    console.close()
    console.close()
    assert "run directory" not in capsys.readouterr().out


class Terminal:
    """A pseudo-terminal in place of standard output."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.file: TextIO = os.fdopen(theirs, "w")

    def read(self) -> str:
        """What was written since the last time."""
        self.file.flush()
        found = io.BytesIO()
        while True:
            try:
                found.write(os.read(self._ours, 65536))
            except BlockingIOError:
                return found.getvalue().decode()

    def close(self) -> None:
        self.file.close()
        os.close(self._ours)


def test_the_bar_redraws_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal 20,000 steps in a moment draw a few frames, a notice stands above, nothing is left."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal.file)
    console = Console(redraws_per_second=10)
    console.start(info(tmp_path, num_steps=20_000))
    begin = time.monotonic()
    for step in range(1, 20_001):
        console.step(record(step))
    seconds = time.monotonic() - begin
    time.sleep(0.25)
    frames = terminal.read()
    console.notice("said in the middle")
    console.evaluation(20_000, report())
    console.finish({"steps": 20_000})
    console.close()
    rest = terminal.read()
    terminal.close()

    assert "step 20000/20000" in frames
    assert "examples/s" in frames
    assert frames.count("%") <= 10 * seconds + 6
    assert rest.index("said in the middle") < rest.index("run directory")
    assert "notice: said in the middle\n" in log_of(tmp_path)


def test_the_meter_knows_rates_and_time_left() -> None:
    """Steady steps of 32 examples in 0.5 s: 64 a second, and half a second for each step to come."""
    meter = Meter(num_steps=40, first_step=0)
    assert meter.line() == "step  0/40  left -:--"
    for step in range(1, 11):
        meter.update(record(step))
    assert meter.examples_per_second == pytest.approx(64)
    assert meter.tokens_per_second == pytest.approx(8000)
    assert meter.seconds_left == pytest.approx(15)


def test_numbers_read_well() -> None:
    """Values as the screen and the page show them."""
    assert [number_text(v) for v in (0.51234, 4.2e-5, 1234, 2.0, 1234.56, None, float("nan"))] == [
        "0.5123", "4.2e-05", "1,234", "2", "1,234.6", "-", "nan",
    ]  # fmt: skip
    assert [short_text(v) for v in (61.34, 9100, 22_700_000, 0)] == ["61.3", "9.1k", "22.7M", "0"]
    assert [bytes_text(v) for v in (12, 5.1e8, 1.2e9)] == ["12 B", "510 MB", "1.2 GB"]
    assert [clock_text(v) for v in (7.2, 61, 3723, float("inf"))] == ["0:07", "1:01", "1:02:03", "-:--"]
