"""Writes scripts, submits them and stays with the jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.errors import ConfigError, LaunchError
from distrib.launchers.slurm import client
from distrib.launchers.slurm.follow import Follower, verdict
from distrib.launchers.slurm.options import without_overrides
from distrib.launchers.slurm.script import SCRIPT
from distrib.rank_variables import RANK_VARIABLES

if TYPE_CHECKING:
    from distrib.launchers.base import LaunchPlan
    from distrib.launchers.slurm.launcher import Slurm


def submit_one(launcher: Slurm, plan: LaunchPlan) -> int:
    """The exit code of the job, or 0 at once where nobody wants to follow it."""
    write(plan.run_dir, launcher.files(plan))
    job = submit(plan.run_dir / SCRIPT, options=launcher.sbatch_options(plan))
    log = plan.run_dir / "logs" / f"slurm-{job}.out"
    print(f"job {job}   submitted; it does not need this command to go on\nlog   {log}", flush=True)
    if not launcher.follow:
        return 0
    follower = Follower(job, log=log)
    (state,) = follower.run()
    code, words = verdict(state, interrupted=follower.interrupted)
    if words:
        print(words, file=sys.stderr, flush=True)
    return code


def write(folder: Path, files: Mapping[str, str]) -> None:
    """The files of a plan."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def submit(script: Path, *, options: Mapping[str, str | None]) -> str:
    """The number of the job. Raises `ConfigError` for a partition that is not there, else `LaunchError`."""
    ours = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    try:
        return client.submit(script, env=without_overrides(ours, options))
    except LaunchError as error:
        if "invalid partition" not in str(error).lower():
            raise
        there = ", ".join(client.partitions())
        wanted = options.get("partition")
        raise ConfigError("launcher.partition", wanted, f"no such partition; there are: {there}") from error
