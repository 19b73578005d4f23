"""``distrib doctor``: what is installed, what each host has, what can talk to what; before the job."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.cli.groups import add_config_dir
from distrib.errors import ConfigError, DistribError, LaunchError

if TYPE_CHECKING:
    from distrib.config import RunConfig
    from distrib.doctor.findings import Finding
    from distrib.world import World

HELP = "Check hosts, network, engines and disk before a job; on every host of it with a launcher."

EPILOG = """\
Two processes on this host try everything out, unless a launcher is chosen:
  distrib doctor
  distrib doctor launcher=local launcher.num_processes=4
  distrib doctor run_dir=/shared/runs/mine --json doctor.json      where checkpoints will go
  torchrun --nnodes 2 ... -m distrib doctor                        inside somebody else's launcher
Exit code: 0, or 1 where a check failed. A missing optional engine is a note.
"""

HERE = ("launcher=local", "launcher.num_processes=2")
"""In front of what the user says: an all-reduce needs two."""


def epilog() -> str:
    """The long part of ``--help``."""
    return EPILOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The launcher's settings as words."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="launcher, run_dir, timeouts.start and plugins"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the findings there too")
    add_config_dir(parser)


def run(args: argparse.Namespace) -> int:
    """0, or 1 where a check failed."""
    from distrib.world import World

    world = World.from_env()
    settings = _compose(args.overrides, config_dirs=args.config_dir)
    findings = _join(settings, world) if world.size > 1 else _launch(settings)
    return _tell(findings, file=args.json) if world.rank == 0 else 0


def _compose(overrides: Sequence[str], *, config_dirs: Sequence[str]) -> RunConfig:
    from distrib.cli.compose import compose_part

    return compose_part([*HERE, *overrides], config_dirs=config_dirs)


def _launch(config: RunConfig) -> list[Finding]:
    """Starts the launcher's processes and reads what rank 0 has left. Raises `LaunchError` without that."""
    from distrib.doctor.findings import Finding
    from distrib.doctor.worker import FINDINGS
    from distrib.launchers.base import Launcher, LaunchPlan
    from distrib.targets import build

    launcher: Launcher = build(config.launcher, key="launcher", plugins=config.plugins)
    folder = _fresh_folder(config)
    start = config.timeouts.start
    argv = (sys.executable, "-m", "distrib.doctor.worker", str(folder), str(start))
    try:
        code = launcher.launch(LaunchPlan(run_dir=folder, argv=argv, start_timeout=start))
    except DistribError:
        if not any((folder / "logs").glob("*")):
            _remove(folder)  # no rank has started: there is nothing to read
        raise
    if code:
        raise LaunchError(
            f"the ranks did not get through (exit code {code}); their logs are in {folder}/logs"
        )
    try:
        values = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(
            f"rank 0 wrote its findings to {folder}, where this host does not see them: start from a "
            "directory that every host mounts at the same path, or set run_dir to one"
        ) from error
    _remove(folder)
    return [Finding(**value) for value in values]


def _join(config: RunConfig, world: World) -> list[Finding]:
    """As one rank of a job that somebody else has started."""
    from distrib.doctor.worker import meet_and_examine

    folder = _parent(config) / "doctor" / "joined"
    try:
        return meet_and_examine(world, folder, start=config.timeouts.start)
    finally:
        if world.local_rank == 0:  # on every host: where they share no directory, each has its own
            _remove(folder)


def _tell(findings: Sequence[Finding], *, file: Path | None) -> int:
    from rich.console import Console

    from distrib.cli.doctor_table import doctor_table, remedies
    from distrib.doctor.findings import failed

    if file is not None:
        file.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(doctor_table(findings))
    console.print(remedies(findings))
    return 1 if failed(findings) else 0


def _fresh_folder(config: RunConfig) -> Path:
    from distrib.cli.rundir import make_fresh

    parent = _parent(config)
    try:
        return make_fresh(parent / "doctor")
    except OSError as error:
        remedy = f"cannot be written to ({error.strerror}), and checkpoints would go there; set another one"
        raise ConfigError("run_dir", parent, remedy) from error


def _parent(config: RunConfig) -> Path:
    """Where checkpoints will go."""
    from distrib.cli.rundir import RUNS

    return Path(config.run_dir).resolve() if config.run_dir else RUNS.resolve()


def _remove(folder: Path) -> None:
    """Our own folder, and what we made above it where that is empty now."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            return
