"""The config groups, their folders and options: plain file listing, no Hydra."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import distrib
from distrib.errors import ConfigError
from distrib.targets import did_you_mean

TARGETS = ("strategy", "model", "task", "data", "optimizer", "schedule", "launcher")
"""Groups whose section is one ``_target_`` and its constructor's arguments."""

SWEEP = "sweep"
"""How ``-m`` searches: no part of a run."""

GROUPS = ("experiment", *TARGETS, "precision", "checkpoint", "tracking", SWEEP)
"""Every group, in the order in which people choose."""


def config_dir() -> Path:
    """The folder of the configs: packaged in an installed wheel, ``conf`` at the top of a checkout."""
    package = Path(distrib.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError("conf", package / "conf", "the configs are not there; install distrib again")


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """The option by which a command is told of configs beside the packaged ones."""
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with more options for the groups; may be given several times",
    )


def search_path(config_dirs: Sequence[str]) -> list[Path]:
    """Where configs are looked up, first match wins. Raises `ConfigError` for a folder that is not there."""
    own = [Path(folder).resolve() for folder in config_dirs]
    for folder in own:
        if not folder.is_dir():
            raise ConfigError("--config-dir", folder, "is not a folder")
    return [config_dir(), *own]


def options(group: str, *, config_dirs: Sequence[str] = ()) -> dict[str, str]:
    """The options of a group and the first line of each file's comment, sorted by name."""
    folders = reversed(search_path(config_dirs))
    files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
    return {file.stem: _summary(file) for file in sorted(files, key=lambda file: file.stem)}


def no_such_option(group: str, option: object, *, config_dirs: Sequence[str] = ()) -> ConfigError:
    """What to tell somebody who chose an option that is not there."""
    available = options(group, config_dirs=config_dirs)
    near = did_you_mean(str(option), available)
    return ConfigError(group, option, f"no such option; {near}available: {', '.join(available)}")


def _summary(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        text = line.lstrip("# ")
        if text and not text.startswith("@package"):
            return text
    return ""
