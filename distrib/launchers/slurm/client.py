"""SLURM's own commands, as functions: argument lists in, values or `LaunchError` out."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import LaunchError, MissingDependencyError

LIMIT_SECONDS = 60
"""For one command; a controller that is busy answers in seconds."""

FIELDS = ("JobArrayID", "State", "Reason", "exit_code", "RestartCnt", "NodeList")

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
)
"""States that a job does not leave again."""

NEVER = frozenset(
    (
        "AccountNotAllowed",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionConfig",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
    )
)
"""Reasons for waiting that no waiting ends: SLURM takes such a job and never starts it."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What SLURM says of one job, or of one task of an array."""

    job: str
    """Its number, or ``<array>_<task>``."""
    state: str
    reason: str = ""
    code: int = 0
    """Its exit code, 128 + signal where one killed it."""
    restarts: int = 0
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED

    @property
    def hopeless(self) -> bool:
        """Whether it waits for what will not come."""
        return self.state == "PENDING" and self.reason in NEVER

    def describe(self) -> str:
        """For the screen: ``PENDING (Priority)``, ``RUNNING on h[1-4]``."""
        if self.state == "PENDING":
            again = f", to start again ({self.restarts})" if self.restarts else ""
            reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
            return f"PENDING{reason}{again}"
        return f"{self.state} on {self.nodes}" if self.nodes else self.state


def submit(script: Path, *, env: Mapping[str, str]) -> str:
    """The number of the submitted job. Raises `LaunchError` with sbatch's own words."""
    answer = _run(["sbatch", "--parsable", str(script)], env=env)
    return answer.strip().splitlines()[-1].partition(";")[0]


def states(job: str) -> list[JobState]:
    """One per task of an array, else one; none where SLURM has forgotten the job."""
    fields = ",".join(f"{name}:|" for name in FIELDS)
    try:
        answer = _run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "-O", fields])
    except LaunchError as error:
        if "Invalid job id" not in str(error):
            raise
        answer = ""
    return [_state(line) for line in answer.splitlines() if line.count("|") >= len(FIELDS)] or _kept(job)


def cancel(job: str) -> None:
    """Ends a job: its ranks get SIGTERM, and SIGKILL some time later. One that has ended is left alone."""
    _run(["scancel", "--quiet", job])


def requeue(job: str) -> None:
    """Ends a job and puts it back into the queue. Raises `LaunchError` where it may not."""
    _run(["scontrol", "requeue", job])


def partitions() -> list[str]:
    """The names of all partitions."""
    return _run(["sinfo", "--noheader", "--format=%R"]).split()


def _state(line: str) -> JobState:
    job, state, reason, code, restarts, nodes, *_ = (part.strip() for part in line.split("|"))
    return JobState(
        job=job, state=state, reason=reason, code=exit_code(code), restarts=int(restarts or 0), nodes=nodes
    )


def _kept(job: str) -> list[JobState]:
    """What the accounting knows, where a site keeps one: squeue forgets a job some minutes after its end."""
    command = ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}"]
    try:
        answer = _run([*command, "--format=JobID,State,ExitCode"])
    except (LaunchError, MissingDependencyError):
        return []
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 2]
    return [
        JobState(job=number, state=state.split()[0], code=exit_code(code)) for number, state, code in rows
    ]


def exit_code(text: str) -> int:
    """From squeue's wait status (``256``) or SLURM's ``code:signal`` (``1:0``) to a shell's exit code."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if not numbers:
        return 0
    code, signal = numbers if len(numbers) == 2 else (numbers[0] >> 8, numbers[0] & 0x7F)
    return 128 + signal if signal else code


def _run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise MissingDependencyError(
            command[0],
            extra="",
            needed_for="launcher=slurm",
            remedy="start it where SLURM's commands are (Debian: slurm-client), or choose another launcher",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{command[0]} gave no answer in {LIMIT_SECONDS} s; is slurmctld up?") from error
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())
        raise LaunchError(f"{command[0]} failed with exit code {done.returncode}: {words}")
    return done.stdout
