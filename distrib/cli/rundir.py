"""Run directories: made once, by one process, and found again as ``runs/latest``."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from distrib.config import RunConfig, dump
from distrib.errors import ConfigError
from distrib.tracking.environment import note_command

RUNS = Path("runs")
"""Below the working directory."""


def make_run_dir(config: RunConfig) -> Path:
    """The directory of this run, made and holding ``config.yaml``; the run's own where it is resumed.

    Raises `ConfigError` where ``run_dir`` names a directory that another run has written to.
    """
    if config.run_dir is None:
        run_dir = make_fresh(RUNS / config.name)
    else:
        run_dir = Path(config.run_dir).resolve()
        _check_free(run_dir, resume=config.resume)
        run_dir.mkdir(parents=True, exist_ok=True)
    write_config(config, run_dir)
    note_command(run_dir)
    if run_dir.is_relative_to(RUNS.resolve()):
        link_latest(RUNS, run_dir)
    return run_dir


def write_config(config: RunConfig, run_dir: Path) -> None:
    """Writes ``config.yaml`` without the place it lies at, so that the directory may be moved."""
    dump(replace(config, run_dir=None), run_dir / "config.yaml")


def make_fresh(parent: Path) -> Path:
    """A new directory named by the time, in ``parent``; absolute. Two at the same second get two."""
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parent.mkdir(parents=True, exist_ok=True)
    for name in chain([time], (f"{time}_{again}" for again in count(2))):
        with suppress(FileExistsError):
            (parent / name).mkdir()
            break
    return (parent / name).resolve()


def link_latest(parent: Path, folder: Path) -> None:
    """Points ``parent/latest`` at ``folder``, in one step: nobody ever sees it missing."""
    draft = parent / f".latest.{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(folder, parent.resolve()), target_is_directory=True)
    draft.replace(parent / "latest")


def _check_free(run_dir: Path, *, resume: str | None) -> None:
    if not (run_dir / "config.yaml").exists():
        return
    if resume is None or run_dir not in (Path(resume).resolve(), Path(resume).resolve().parent.parent):
        raise ConfigError("run_dir", run_dir, f"holds a run already; go on with it by resume={run_dir}")
