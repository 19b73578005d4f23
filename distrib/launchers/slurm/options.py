"""What is asked of SLURM, checked: every value that ends up in a script or command passes here first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from distrib.errors import ConfigError

WORD = re.compile(r"[\w.@+-]+", re.ASCII)
WORDS = re.compile(r"[\w.@+-]+(,[\w.@+-]+)*", re.ASCII)
TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", re.ASCII)
GPUS = re.compile(r"([A-Za-z][\w.-]*:)?\d+", re.ASCII)
MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)
CONSTRAINT = re.compile(r"[\w.:&|,*()\[\]+-]+", re.ASCII)
EXTRA = re.compile(r"--([a-z][a-z0-9-]*)(=[\w .,:;@%+=/&|*()\[\]-]*)?", re.ASCII)

MEANING = {
    "job_name": (WORD, "letters, digits and . _ @ + -"),
    "partition": (WORDS, "the name of a partition, or several with commas"),
    "account": (WORD, "letters, digits and . _ @ + -"),
    "qos": (WORD, "letters, digits and . _ @ + -"),
    "time": (TIME, "minutes, or as SLURM writes it: 30:00, 2:00:00, 1-12:00:00"),
    "constraint": (CONSTRAINT, "features of nodes, as gpu&(intel|amd)"),
    "gpus_per_node": (GPUS, "a number, or type:number as a100:4"),
    "mem": (MEMORY, "memory per node: a number with K, M, G or T, as 64G"),
}
"""What each text may be, and how that is said."""

TAKEN = (
    "array", "chdir", "cpus-per-task", "error", "export", "export-file", "get-user-env", "gpus-per-task",
    "het-group", "input", "job-name", "nodes", "no-requeue", "ntasks", "ntasks-per-core", "ntasks-per-gpu",
    "ntasks-per-node", "open-mode", "output", "parsable", "partition", "account", "qos", "time", "constraint",
    "gpus-per-node", "mem", "requeue", "signal", "test-only", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that the launcher sets itself, or whose effect would break what it promises."""

VARIABLES = {"time": "SBATCH_TIMELIMIT", "mem": "SBATCH_MEM_PER_NODE", "array": "SBATCH_ARRAY_INX"}
"""Where the variable that overrides an option of a script is not called ``SBATCH_<OPTION>``."""


def check_texts(section: str = "launcher", /, **values: str | int | None) -> None:
    """Raises `ConfigError` for a text that is not what its key means."""
    for key, value in values.items():
        pattern, meaning = MEANING[key]
        if value is not None and (not pattern.fullmatch(str(value)) or str(value).startswith("-")):
            raise ConfigError(f"{section}.{key}", repr(value), meaning)


def check_numbers(least: int, section: str = "launcher", /, **values: int | None) -> None:
    """Raises `ConfigError` for a number below ``least``."""
    for key, value in values.items():
        if value is not None and value < least:
            raise ConfigError(f"{section}.{key}", value, f"at least {least} is needed")


def check_extra(extra: Iterable[str]) -> None:
    """Raises `ConfigError` for what is no option of sbatch, or one that the launcher sets itself."""
    for option in extra:
        match = EXTRA.fullmatch(option)
        if match is None:
            raise ConfigError(
                "launcher.extra",
                repr(option),
                "each is one long option of sbatch, as --gres=gpu:2 or --exclusive, without quotes, "
                "backslashes, $, ` or line ends",
            )
        # sbatch takes any beginning of an option's name for the whole: --wra=... is --wrap=...
        taken = [name for name in TAKEN if name.startswith(match[1])]
        if taken:
            raise ConfigError(
                "launcher.extra", repr(option), f"--{taken[0]} is the launcher's own; use its keys instead"
            )


def check_run_dir(run_dir: Path) -> None:
    """Raises `ConfigError` for a path that cannot stand in a script's ``#SBATCH`` line."""
    if not str(run_dir).isprintable() or "\\" in str(run_dir):
        raise ConfigError("run_dir", repr(str(run_dir)), "SLURM takes no line ends or backslashes in a path")


def without_overrides(environ: Mapping[str, str], options: Iterable[str]) -> dict[str, str]:
    """``environ`` without the variables that would override ``options`` of a script in silence."""
    names = {VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}") for name in options}
    return {name: value for name, value in environ.items() if name not in names}
