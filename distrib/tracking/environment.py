"""What a run ran on and with, found without importing anything heavy."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "distrib", "torch", "transformers", "tokenizers", "safetensors", "numpy",
    "datasets", "hydra-core", "omegaconf", "deepspeed", "horovod",
)  # fmt: skip

_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|passw(or)?d|secret|credentials?)$|^token$|(auth|access|api|hf|hub|bearer)_token$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(hf_|ghp_|wandb_v1_)[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
HIDDEN = "(hidden)"
COMMAND = "command.txt"


def versions() -> dict[str, str]:
    """Versions by package name, Python's first; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(*, proc: Path = Path("/proc")) -> dict[str, str | int | list[str]]:
    """``cpu`` (its model), ``cores`` this process may use, ``memory`` in bytes, ``gpus``, ``system``."""
    return {
        "cpu": _cpu_model(proc),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpu_names(proc),
        "system": f"{platform.system()} {platform.release()}",
    }


def without_secrets(value: Any) -> Any:
    """A copy of a configuration in which keys, tokens and passwords read ``(hidden)``."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if item is not None and _SECRET_NAME.search(str(key)) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _SECRET_VALUE.sub(HIDDEN, value) if isinstance(value, str) else value


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as it could be typed again, without secrets: ``distrib train experiment=news``."""
    program, *arguments = sys.argv if argv is None else argv
    name = "distrib" if Path(program).name == "__main__.py" else Path(program).name
    return shlex.join([name, *map(_without_secret, arguments)])


def note_command(run_dir: Path, argv: Sequence[str] | None = None) -> None:
    """Adds the command to ``command.txt``: one line for each time the run was started or resumed.

    For the process that the user started: a rank that was launched does not know what was typed.
    """
    with (run_dir / COMMAND).open("a", encoding="utf-8") as commands:
        commands.write(command_line(argv) + "\n")


def _without_secret(argument: str) -> str:
    key, equals, value = argument.partition("=")
    named = _SECRET_NAME.search(key.rpartition(".")[2].lstrip("-+"))
    return f"{key}={HIDDEN}" if equals and value and named else str(without_secrets(argument))


def _cpu_model(proc: Path) -> str:
    info = proc / "cpuinfo"
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _gpu_names(proc: Path) -> list[str]:
    """From the NVIDIA driver's own files: asking torch would cost its import."""
    sheets = sorted((proc / "driver/nvidia/gpus").glob("*/information"))
    names = (re.search(r"^Model:\s*(.+)$", sheet.read_text(), re.MULTILINE) for sheet in sheets)
    return [name[1] for name in names if name]
