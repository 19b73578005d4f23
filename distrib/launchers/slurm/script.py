"""The texts of a job: the script that is submitted and what it hands over to the node it starts on. Pure.

No value of a configuration is read by a shell as anything but itself: a script's lines for sbatch hold
checked words (`distrib.launchers.slurm.options`), its only command is two quoted paths, and everything
else lies in ``slurm.json``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = "slurm.sbatch"
WORK = "slurm.json"
ARRAY = "slurm-array.json"
"""Of a sweep: the run directory of each task of the array, by its number."""

BATCH = "distrib.launchers.slurm.batch"
TASK = "distrib.launchers.slurm.task"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done inside an allocation."""

    run_dir: str
    srun: tuple[str, ...]
    """The command that starts all ranks."""
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
        lists = {name: tuple(values[name]) for name in ("srun", "expendable")}
        return cls(**{**values, **lists})


def srun(argv: tuple[str, ...], *, run_dir: Path, options: Mapping[str, str]) -> tuple[str, ...]:
    """The command that starts ``argv`` (``python -m module ...``) as every rank of a step.

    srun itself ends nothing when a rank fails: `distrib.launchers.slurm.step` first looks for the cause.
    """
    python, dash_m, *module = argv
    given = [f"--{name}={value}" for name, value in options.items()]
    task = (python, dash_m, TASK, str(run_dir / "logs"), *module)
    return ("srun", *given, "--kill-on-bad-exit=0", "--wait=0", "--mpi=none", *task)


def script(folder: Path, *, options: Mapping[str, str | None]) -> str:
    """The script that sbatch is given.

    Args:
        folder: holds ``slurm.json``.
        options: sbatch's, without the dashes; None for one without a value.
    """
    lines = [
        "#!/bin/bash",
        "# Written by distrib. `sbatch` submits it again; the run then goes on from its newest checkpoint.",
        *(
            f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}")
            for name, value in options.items()
        ),
        # exec: the signal before the time limit goes to the script's own process.
        f"exec {shlex.quote(sys.executable)} -m {BATCH} {shlex.quote(str(folder))}",
    ]
    return "\n".join(lines) + "\n"


def output(folder: Path, name: str) -> str:
    """Where sbatch writes what a job says: ``name`` may hold SLURM's patterns, the path stands for itself."""
    return str(folder).replace("%", "%%") + f"/{name}"
