"""The scripts in ``launch/`` with a configuration's values filled in, for those who submit and edit them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import distrib
from distrib.config import RunConfig
from distrib.errors import ConfigError
from distrib.targets import build

SETTING = re.compile(r"^([A-Z_]+)=\$\{\1:-[^}]*\}( *)(#.*)?$", re.MULTILINE)
"""A line that people edit: ``NAME=${NAME:-value}   # what it is``."""


def filled(config: RunConfig, words: Sequence[str]) -> str | None:
    """The launcher's script with its settings and the command's other words; None where it has none."""
    folder = launch_dir()
    file = folder / f"{config.choices.get('launcher', '')}.sh"
    if not file.is_file():
        return None
    settings = [word for word in words if not word.lstrip("+").startswith(("launcher=", "launcher."))]
    launcher = build(config.launcher, key="launcher", plugins=config.plugins)
    values = {**config.launcher, "num_nodes": launcher.num_nodes}
    text = SETTING.sub(lambda line: _set(line, values), file.read_text(encoding="utf-8"))
    return text.replace('"$@"', " ".join([*map(shlex.quote, settings), '"$@"']))


def write(config: RunConfig, words: Sequence[str], file: Path) -> None:
    """Writes the script, executable. Raises `ConfigError` where it exists or the launcher has none."""
    text = filled(config, words)
    if text is None:
        there = ", ".join(sorted(path.stem for path in launch_dir().glob("*.sh")))
        raise ConfigError("launcher", config.choices.get("launcher"), f"has no script; there are: {there}")
    try:
        with file.open("x", encoding="utf-8") as script:
            script.write(text)
        file.chmod(0o755)
    except OSError as error:
        raise ConfigError("--script", file, error.strerror or str(error)) from error


def launch_dir() -> Path:
    """The folder of the scripts: packaged in an installed wheel, ``launch`` at the top of a checkout."""
    package = Path(distrib.__file__).parent
    packaged = package / "launch"
    return packaged if packaged.is_dir() else package.parent / "launch"


def _set(line: re.Match[str], settings: Mapping[str, Any]) -> str:
    """The line with the launcher's value, where it has one."""
    name, space, comment = line[1], line[2], line[3] or ""
    value = settings.get(name.lower())
    return line[0] if value is None else f"{name}={shlex.quote(str(value))}{space}{comment}".rstrip()
