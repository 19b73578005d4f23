"""A folder that is built once per machine, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from distrib.errors import DataError

HEAD_START = 5.0
"""Seconds that other processes leave to the builder before they queue for its lock themselves."""
LISTING = "files.json"


def ensure(folder: Path, build: Callable[[Path], None], *, is_builder: bool) -> None:
    """Leaves a whole ``folder``, built by ``build(empty_folder)`` if it is absent or damaged.

    Every process of the machine may call this at once: one builds, the others wait for it. Those
    that are not the builder let it go first, so that an error in the data is told once, by the
    process whose words reach the screen. A builder that dies leaves the lock to the next process.

    Raises `DataError` where the cache cannot be written.
    """
    if is_whole(folder) or (not is_builder and _appears(folder)):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                _rebuild(folder, build)
    except OSError as error:
        remedy = "free some space or set cache_dir to another place"
        raise DataError(f"{folder}: encoded data cannot be written ({error}): {remedy}") from error


def is_whole(folder: Path) -> bool:
    """Whether every listed file is there in full; the listing is written last."""
    try:
        sizes = json.loads((folder / LISTING).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def _appears(folder: Path) -> bool:
    end = time.monotonic() + HEAD_START
    while time.monotonic() < end:
        time.sleep(0.02)
        if is_whole(folder):
            return True
    return False


def _rebuild(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):  # of a builder that was killed, of a damaged copy
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    try:
        build(partial)
        _list_files(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _list_files(folder: Path) -> None:
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    (folder / LISTING).write_text(json.dumps(sizes, indent=1))


def cache_folder(setting: str | None) -> Path:
    """Where encoded data is kept: ``cache_dir``, or the user's cache folder (XDG Base Directory)."""
    if setting is not None:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distrib"
