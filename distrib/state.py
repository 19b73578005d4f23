"""How a strategy hands its state to a checkpoint and takes it back: named full tensors, one at a time.

Sections are ``model`` (plain parameter names), ``optimizer`` (``<parameter name>/<slot>``) and
``strategy`` (what has no plain name and only the same strategy can read).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distrib.errors import CheckpointError
from distrib.tensor_file import TensorFileWriter, num_bytes

MIN_FILE_BYTES = 64 * 2**20
"""Below this a further file (and rank) would not make writing faster."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a checkpoint, not there yet."""

    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """The full tensor, valid until another entry is read.

    May be collective: every rank calls every entry's, in the same order.
    """


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """One line of the manifest."""

    path: str
    size: int
    sha256: str


def assign_files(sizes: Sequence[int], *, num_files: int) -> list[int]:
    """Which file each tensor goes to: runs of neighbours of about equal bytes."""
    total, before, owners = max(sum(sizes), 1), 0, []
    for size in sizes:
        owners.append(min(before * num_files // total, num_files - 1))
        before += size
    return owners


class StateWriter:
    """Takes tensors from every rank and writes each once, spread over the ranks by bytes."""

    def __init__(self, folder: Path, *, rank: int, size: int, min_file_bytes: int = MIN_FILE_BYTES) -> None:
        self._folder = folder
        self._rank, self._size = rank, size
        self._min_file_bytes = min_file_bytes
        self.written: list[WrittenFile] = []

    def write(self, section: str, entries: Sequence[Entry], *, file: str | None = None) -> None:
        """Reads the entries in order, on every rank, and writes those of this rank's file.

        Args:
            file: the file's name where a section is written in several calls; default: the section's.
        """
        if not entries:
            return
        sizes = [num_bytes(entry.shape, entry.dtype) for entry in entries]
        num_files = max(1, min(self._size, sum(sizes) // self._min_file_bytes))
        owners = assign_files(sizes, num_files=num_files)
        folder = self._folder / section
        folder.mkdir(parents=True, exist_ok=True)
        stem = file or section
        if self._rank == 0 and num_files > 1:
            self._write_index(folder / stem, entries, owners=owners, total=sum(sizes))
        mine = [entry for entry, owner in zip(entries, owners, strict=True) if owner == self._rank]
        if not mine:
            for entry in entries:
                entry.read()
            return
        path = folder / file_name(stem, max(owners) + 1, self._rank)
        with TensorFileWriter(path, [(e.name, e.shape, e.dtype) for e in mine]) as tensors:
            for entry, owner in zip(entries, owners, strict=True):
                tensor = entry.read()
                if owner == self._rank:
                    tensors.append(tensor)
        self._record(path, size=tensors.size, sha256=tensors.sha256)

    def write_alone(self, section: str, entries: Sequence[Entry], *, file: str | None = None) -> None:
        """Reads and writes the entries on this rank, and on no other: for what one rank can reach alone.

        Args:
            file: the file's name where several ranks write into a section; default: the section's.
        """
        if not entries:
            return
        path = self._folder / section / file_name(file or section, 1, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TensorFileWriter(path, [(e.name, e.shape, e.dtype) for e in entries]) as tensors:
            for entry in entries:
                tensors.append(entry.read())
        self._record(path, size=tensors.size, sha256=tensors.sha256)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keeps a small JSON value that only the same strategy reads; rank 0's counts."""
        if self._rank == 0:
            path = self._folder / "strategy" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))

    def _write_index(
        self, path: Path, entries: Sequence[Entry], *, owners: Sequence[int], total: int
    ) -> None:
        count = max(owners) + 1
        names = {
            entry.name: file_name(path.name, count, owner)
            for entry, owner in zip(entries, owners, strict=True)
        }
        index = {"metadata": {"total_size": total}, "weight_map": names}
        path.with_name(f"{path.name}.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def _record(self, path: Path, *, size: int, sha256: str) -> None:
        name = path.relative_to(self._folder).as_posix()
        self.written.append(WrittenFile(path=name, size=size, sha256=sha256))


def owner(name: str) -> str:
    """The part of an entry's name that says what kept it."""
    return name.partition("/")[0]


def file_name(stem: str, num_files: int, number: int) -> str:
    """Hugging Face's names for whole and split weight files."""
    if num_files == 1:
        return f"{stem}.safetensors"
    return f"{stem}-{number + 1:05d}-of-{num_files:05d}.safetensors"


class StateReader:
    """A checkpoint's tensors by section and name; a tensor is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[tuple[str, str], Any] = {}
        self._asked: set[str] = set()
        for path in sorted(folder.glob("*/*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
            for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 (not a mapping)
                self._files[path.parent.name, name] = file

    def names(self, section: str) -> set[str]:
        """The names in a section; empty where the checkpoint has none."""
        return {name for found, name in self._files if found == section}

    def shape(self, section: str, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[section, name].get_slice(name).get_shape())

    def read(self, section: str, name: str) -> Tensor:
        """One full tensor, on the CPU."""
        if section == "strategy":
            self._asked.add(owner(name))
        tensor: Tensor = self._files[section, name].get_tensor(name)
        return tensor

    def read_rows(self, section: str, name: str, rows: slice) -> Tensor:
        """Rows of one tensor, on the CPU: what a sharded strategy holds of it."""
        tensor: Tensor = self._files[section, name].get_slice(name)[rows]
        return tensor

    def note(self, name: str) -> dict[str, Any] | None:
        """A value kept by `StateWriter.note`, or None."""
        self._asked.add(name)
        path = self.folder / "strategy" / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def dropped(self) -> list[str]:
        """What the checkpoint's strategy kept for itself and nobody has asked for.

        By the first part of a tensor's name, or a note's name: a rank that reads its own share of
        ``powersgd/…`` has not dropped the others'.
        """
        notes = {path.stem for path in self.folder.glob("strategy/*.json")}
        kept = {owner(name) for name in self.names("strategy")} | {
            n for n in notes if ".safetensors" not in n
        }
        return sorted(kept - self._asked)

    def check_model(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises `CheckpointError` when the weights are not those of a model with these shapes."""
        saved = self.names("model")
        for name, shape in shapes.items():
            if name not in saved:
                raise CheckpointError(f"{self.folder} is of another model: it has no parameter '{name}'")
            if self.shape("model", name) != tuple(shape):
                raise CheckpointError(
                    f"{self.folder} is of another model: '{name}' has shape "
                    f"{self.shape('model', name)} there and {tuple(shape)} here"
                )
        if extra := sorted(saved - set(shapes)):
            raise CheckpointError(
                f"{self.folder} is of another model: this one has no parameter '{extra[0]}'"
            )
