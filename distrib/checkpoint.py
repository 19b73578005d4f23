"""Checkpoints as folders: written beside, named last, verified before use.

::

    checkpoints/step-00000500/
      model/        weights, config and tokenizer: a Hugging Face model folder
      optimizer/    one entry per parameter and slot
      strategy/     what only the same strategy can read, where there is any
      trainer.json  step, metrics, strategy, world size, configuration, versions
      MANIFEST.json size and sha256 of every file; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.errors import CheckpointError

if TYPE_CHECKING:
    from distrib.state import WrittenFile

MANIFEST = "MANIFEST.json"
TRAINER = "trainer.json"
BEST = "best"
PREFIX = "step-"
PARTIAL = ".partial"


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is."""
    return root / f"{PREFIX}{step:08d}"


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint. Raises `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step, so that a reader finds the old one or the new one."""
    temporary = path.with_name(path.name + PARTIAL)
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def verify(folder: Path) -> None:
    """Raises `CheckpointError` naming the first file that is missing, altered or not listed."""
    listed = read_json(folder / MANIFEST).get("files", {})
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    if unlisted := sorted(present - set(listed)):
        raise CheckpointError(f"{folder / unlisted[0]} is not part of the checkpoint that its manifest lists")
    for name, expected in listed.items():
        path = folder / name
        if name not in present:
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["size"] or file_digest(path) != expected["sha256"]:
            raise CheckpointError(f"{path} was altered or cut short: its digest is not the manifest's")


def list_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoint folders, newest first. Needs no torch."""
    named = (path for path in root.glob(f"{PREFIX}*") if path.suffix != PARTIAL)
    return sorted((path for path in named if (path / MANIFEST).exists()), reverse=True)


def newest_whole(root: Path, *, notice: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that passes `verify`; those passed over are said to ``notice``."""
    for folder in list_checkpoints(root):
        try:
            verify(folder)
        except CheckpointError as error:
            notice(f"checkpoint {folder.name} is damaged and was passed over: {error}")
        else:
            return folder
    return None


def find_checkpoint(path: Path, *, best: bool = False, notice: Callable[[str], None] = print) -> Path:
    """The verified checkpoint that a run directory or checkpoint folder means.

    A run directory means its newest whole checkpoint, or with ``best`` the one with the best
    metric. Raises `CheckpointError` when there is none, or the one named is damaged.
    """
    if (path / MANIFEST).exists():
        verify(path)
        return path.resolve()
    root = path / "checkpoints"
    if best and (root / BEST).exists():
        verify(root / BEST)
        return (root / BEST).resolve()
    found = newest_whole(root, notice=notice)
    if found is None:
        raise CheckpointError(f"{path} holds no whole checkpoint (looked for {root}/{PREFIX}*/{MANIFEST})")
    return found


class CheckpointFolder:
    """The ``checkpoints/`` of one run: what is kept, and the two phases of a save.

    Every rank writes into `begin`'s folder; when all have, rank 0 alone calls `commit`.
    """

    def __init__(self, root: Path, *, keep_last: int, keep_best: bool) -> None:
        self.root = root
        self.keep_last = keep_last
        self.keep_best = keep_best

    def clean(self) -> None:
        """Removes what a killed save left behind. Rank 0 calls it before the first save."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def begin(self, step: int) -> Path:
        """The folder that the checkpoint grows in; may be called by every rank."""
        folder = self.root / f"{PREFIX}{step:08d}{PARTIAL}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, step: int, *, best: bool) -> Path:
        """Writes the manifest, gives the folder its name and removes older checkpoints."""
        folder, final = self.begin(step), step_folder(self.root, step)
        write_json(folder / MANIFEST, {"files": dict(sorted(manifest(folder)))})
        if final.exists():  # the same step saved again after a resume
            shutil.rmtree(final)
        folder.rename(final)
        sync_folder(self.root)
        if best and self.keep_best:
            self._mark_best(final)
        self._prune()
        return final

    def _mark_best(self, final: Path) -> None:
        link = self.root / f"{BEST}{PARTIAL}"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(self.root / BEST)

    def _prune(self) -> None:
        best = (self.root / BEST).resolve()
        for folder in list_checkpoints(self.root)[self.keep_last :]:
            if folder.resolve() != best:
                shutil.rmtree(folder)


def leave_digests(folder: Path, written: Iterable[WrittenFile], *, rank: int) -> None:
    """Keeps the digests of the files a rank wrote beside them, until they are in the manifest."""
    write_json(folder / f".written-{rank}.json", {"files": [asdict(file) for file in written]})


def manifest(folder: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """A line for every file: digests the ranks left in their parts, computed for the others."""
    known: dict[str, dict[str, Any]] = {}
    for part in folder.glob(".written-*.json"):
        known |= {
            file["path"]: {"size": file["size"], "sha256": file["sha256"]}
            for file in read_json(part)["files"]
        }
        part.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            yield name, known.get(name) or {"size": path.stat().st_size, "sha256": file_digest(path)}


def sync_folder(folder: Path) -> None:
    """Makes names in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
