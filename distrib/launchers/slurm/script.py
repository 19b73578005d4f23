"""The texts of a job: the script that is submitted and what it hands over to the node it starts on. Pure.

No value of a configuration is read by a shell as anything but itself: a script's lines for sbatch hold
checked words (`distrib.launchers.slurm.options`), its only command is two quoted paths, and everything
else lies in ``slurm.json``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distrib.launchers.slurm.place import Part, Place

SCRIPT = "slurm.sbatch"
WORK = "slurm.json"
ARRAY = "slurm-array.json"
"""Of a sweep: the run directory of each task of the array, by its number."""

BATCH = "distrib.launchers.slurm.batch"
TASK = "distrib.launchers.slurm.task"
PLACE = "--place="
"""Before the task's other arguments, in a job of several parts."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done inside an allocation."""

    run_dir: str
    parts: tuple[Part, ...]
    """What starts the ranks: one srun for all, or one for each kind of node, the first on the first node."""
    env: Mapping[str, str] = field(default_factory=dict)
    """More variables for every rank."""
    requeue: bool = True
    """Whether the job goes back into the queue when its time is over or a node is lost."""
    max_restarts: int = 0
    """How often all ranks are started again after one died."""
    expendable: tuple[int, ...] = ()
    """Ranks without which the job goes on."""
    newest: str = ""
    """The newest checkpoint in the run directory when the job was planned: a later one is its own."""

    @property
    def logs(self) -> Path:
        """Where the ranks' logs are."""
        return Path(self.run_dir) / "logs"

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Work:
        """The opposite of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        parts = tuple(map(Part.from_json, values["parts"]))
        return cls(**{**values, "parts": parts, "expendable": tuple(values["expendable"])})


def srun(
    argv: tuple[str, ...], *, run_dir: Path, options: Mapping[str, str], place: Place | None = None
) -> tuple[str, ...]:
    """The command that starts ``argv`` (``python -m module ...``) as every rank of a step.

    Args:
        options: srun's, without the dashes.
        place: of these ranks in a job of several parts.

    srun itself ends nothing when a rank fails: `distrib.launchers.slurm.step` first looks for the cause.
    """
    python, dash_m, *module = argv
    given = [f"--{name}={value}" for name, value in options.items()]
    placed = [] if place is None else [f"{PLACE}{place.word}"]
    task = (python, dash_m, TASK, *placed, str(run_dir / "logs"), *module)
    return ("srun", *given, "--kill-on-bad-exit=0", "--wait=0", "--mpi=none", *task)


def script(folder: Path, *, options: Sequence[Mapping[str, str | None]]) -> str:
    """The script that sbatch is given.

    Args:
        folder: holds ``slurm.json``.
        options: sbatch's for each part of the job, without the dashes; None for one without a value.
    """
    lines = [
        "#!/bin/bash",
        "# Written by distrib. `sbatch` submits it again; the run then goes on from its newest checkpoint.",
        "\n#SBATCH hetjob\n".join(map(_lines, options)),
        # exec: the signal before the time limit goes to the script's own process.
        f"exec {shlex.quote(sys.executable)} -m {BATCH} {shlex.quote(str(folder))}",
    ]
    return "\n".join(lines) + "\n"


def _lines(options: Mapping[str, str | None]) -> str:
    return "\n".join(
        f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}")
        for name, value in options.items()
    )


def output(folder: Path, name: str) -> str:
    """Where sbatch writes what a job says: ``name`` may hold SLURM's patterns, the path stands for itself."""
    return str(folder).replace("%", "%%") + f"/{name}"
