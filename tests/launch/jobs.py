"""Starting a launcher as a process, and looking for what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
LIMIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A launcher that has ended."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A launcher at work."""

    process: subprocess.Popen[str]
    folder: Path
    num_processes: int
    marks: Mapping[str, str] = field(default_factory=dict)
    """Variables of which everything that belongs to it has at least one."""

    def wait_ready(self) -> None:
        """Until every rank has said that it is where the test wants it."""
        wait_until(
            lambda: all((self.folder / f"ready-{rank}").exists() for rank in range(self.num_processes))
        )

    def end(self) -> Ended:
        since = time.monotonic()
        out, err = self.process.communicate(timeout=LIMIT_SECONDS)
        return Ended(code=self.process.returncode, out=out, err=err, seconds=time.monotonic() - since)

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank-{rank}.log").read_text()

    def processes(self) -> list[psutil.Process]:
        """Everything this job started that still runs: its folder is in their arguments or environment."""
        marks = {"JOB_FOLDER": str(self.folder), **self.marks}
        return [each for each in psutil.process_iter() if _belongs(each, marks)]


def wait_until(condition: object, seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@contextmanager
def job(
    folder: Path, *module: str, num_processes: int = 2, preload: str = "", stdout: int = subprocess.PIPE
) -> Iterator[Job]:
    """A launcher of ``python -m module`` ranks, killed at the end with all that belongs to it."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "start.py"), str(folder), str(num_processes), preload, *module],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "JOB_FOLDER": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = Job(process=process, folder=folder, num_processes=num_processes)
    try:
        yield started
    finally:
        process.kill()
        process.communicate()
        for left in started.processes():
            left.kill()


def _belongs(process: psutil.Process, marks: Mapping[str, str]) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and bool(marks.items() & process.environ().items())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
