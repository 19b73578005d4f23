"""Writes scripts, submits them and stays with the jobs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.errors import ConfigError, LaunchError
from distrib.launchers.slurm import client
from distrib.launchers.slurm.follow import Follower, decisive, verdict
from distrib.launchers.slurm.options import without_overrides
from distrib.launchers.slurm.script import ARRAY, SCRIPT, WORK, output, script
from distrib.rank_variables import RANK_VARIABLES

if TYPE_CHECKING:
    from distrib.launchers.base import LaunchPlan
    from distrib.launchers.slurm.launcher import Slurm


def submit_one(launcher: Slurm, plan: LaunchPlan) -> int:
    """The exit code of the job, or 0 at once where nobody wants to follow it."""
    write(plan.run_dir, launcher.files(plan))
    named = {name: value for part in launcher.options_by_part(plan) for name, value in part.items()}
    job = submit(plan.run_dir / SCRIPT, options=named)
    log = plan.run_dir / "logs" / f"slurm-{job}.out"
    print(f"job {job}   submitted; it does not need this command to go on\nlog   {log}", flush=True)
    if not launcher.follow:
        return 0
    follower = Follower(job, log=log)
    code, words = verdict(decisive(follower.run()), interrupted=follower.interrupted)
    if words:
        print(words, file=sys.stderr, flush=True)
    return code


def submit_many(launcher: Slurm, plans: Sequence[LaunchPlan], *, at_once: int | None) -> list[int]:
    """The exit codes of one job array with a task for each plan, in their order."""
    folder = Path(os.path.commonpath([plan.run_dir.parent for plan in plans]))
    for plan in plans:
        (plan.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        write(plan.run_dir, {WORK: launcher.work(plan).to_json()})
    options = array_options(
        launcher.sbatch_options(plans[0]), folder=folder, size=len(plans), at_once=at_once
    )
    run_dirs = json.dumps([str(plan.run_dir) for plan in plans], indent=1)
    write(folder, {ARRAY: run_dirs, SCRIPT: script(folder, options=[options])})
    job = submit(folder / SCRIPT, options=options)
    print(f"job {job}   submitted: {len(plans)} trials\nlogs   {folder}/slurm-{job}_*.out", flush=True)
    if not launcher.follow:
        return [0] * len(plans)
    follower = Follower(job)
    states = {state.job: state for state in follower.run()}
    ended = [verdict(states[f"{job}_{task}"], interrupted=follower.interrupted) for task in range(len(plans))]
    for words in filter(None, (words for _, words in ended)):
        print(words, file=sys.stderr, flush=True)
    return [code for code, _ in ended]


def array_options(
    options: Mapping[str, str | None], *, folder: Path, size: int, at_once: int | None
) -> dict[str, str | None]:
    """Of one script for many jobs, from those of the first job."""
    limit = "" if at_once is None else f"%{at_once}"
    return {**options, "array": f"0-{size - 1}{limit}", "output": output(folder, "slurm-%A_%a.out")}


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
