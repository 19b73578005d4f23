"""Starting the real command and reading what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 200.0
TINY = ("experiment=tiny", "train.steps=8", "train.eval_every=8")
"""What the fixture `one_process` ran."""


def distrib(
    *arguments: str, cwd: Path, prefix: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs ``distrib`` in ``cwd`` to its end; with ``check`` a failure shows what it printed."""
    done = subprocess.run(
        command(*arguments, prefix=prefix),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def command(*arguments: str, prefix: Sequence[str] = ()) -> list[str]:
    return [*(prefix or [sys.executable]), "-m", "distrib", *arguments]


def environment() -> dict[str, str]:
    source = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Starts ``distrib`` and returns at once."""
    return start_process(command(*arguments), cwd=cwd)


def start_process(argv: Sequence[str], *, cwd: Path) -> subprocess.Popen[str]:
    """Starts any command with ``distrib`` in its path and returns at once."""
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(reached: Callable[[], bool], *, process: subprocess.Popen[str], limit: float = 60.0) -> None:
    """Polls until ``reached``; fails with the process's output when it ends first."""
    deadline = time.monotonic() + limit
    while not reached():
        assert process.poll() is None, f"ended early with {process.returncode}:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Sends a signal and returns the exit code."""
    process.send_signal(number)
    process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode


def steps(run_dir: Path) -> list[dict[str, Any]]:
    """The records of optimizer steps."""
    return [record for record in records(run_dir) if "loss" in record]


def records(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in steps(run_dir)]


def summary(run_dir: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return value
