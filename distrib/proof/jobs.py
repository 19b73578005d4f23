"""One job of a comparison: real processes, as ``distrib train`` starts them, without the screen."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.config import RunConfig, dump
from distrib.errors import DistribError, LaunchError
from distrib.launchers.base import Launcher, LaunchPlan
from distrib.targets import build

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One strategy on so many processes with microbatches of one size."""

    strategy: str
    """As people call it: the option of the group."""
    world_size: int
    microbatch_size: int
    config: RunConfig | DistribError
    """Its configuration, or why there is none."""

    @property
    def title(self) -> str:
        """It in words."""
        return f"{self.strategy} on {self.world_size}, microbatches of {self.microbatch_size}"

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.strategy}-{self.world_size}-{self.microbatch_size}"


def run_job(config: RunConfig, run_dir: Path, *, server: ForkServer | None) -> None:
    """Trains ``config`` in ``run_dir``, which is made.

    Raises `LaunchError` with the job's exit code and what it said last, KeyboardInterrupt after Ctrl-C.
    """
    run_dir.mkdir(parents=True)
    dump(replace(config, run_dir=None), run_dir / "config.yaml")
    launcher: Launcher = build(config.launcher, key="launcher", plugins=config.plugins)
    plan = LaunchPlan(
        run_dir=run_dir,
        argv=(sys.executable, "-m", "distrib.proof.worker", str(run_dir)),
        start_timeout=config.timeouts.start,
    )
    said = io.StringIO()
    with contextlib.redirect_stderr(said):  # what went wrong belongs under the table, once
        code = launcher.launch(plan, server=server)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        error = LaunchError(last_words(said.getvalue()) or f"exit code {code}; see {run_dir / 'logs'}")
        error.exit_code = code
        raise error


def last_words(said: str) -> str:
    """The last line of what a launcher said of a failed job, and the log that has the rest."""
    lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in said.splitlines() if line.strip()]
    logs = [line for line in lines if line.startswith("log of rank ")]
    return "\n".join([*lines[-1:], *logs[-1:]])
