"""Encoded examples on disk: flat columns with offsets, memory-mapped and shared by all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from distrib.core import IGNORED

if TYPE_CHECKING:
    from typing_extensions import Self

    from distrib.tasks.base import Example

Array = np.ndarray[Any, Any]


class EncodedSet:
    """Examples by number, read from memory-mapped columns: opening it reads no example."""

    lengths: Array
    """Tokens of each example."""
    targets: Array
    """Labels of each example that are not `IGNORED`."""

    def __init__(self, columns: Mapping[str, tuple[Array, Array]], *, targets: Array) -> None:
        self._columns = columns
        self.lengths = np.diff(columns["input_ids"][1]) if columns else np.zeros(0, np.int64)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> dict[str, Array]:
        """The columns of one example: views of the file, not copies."""
        return self.examples(np.array([index]))[0]

    def examples(self, indices: Array) -> list[dict[str, Array]]:
        """Several examples, a good deal faster than one by one."""
        columns = [
            [flat[start:stop] for start, stop in zip(offsets[indices].tolist(), ends.tolist(), strict=True)]
            for flat, offsets in self._columns.values()
            for ends in [offsets[indices + 1]]
        ]
        return [dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True)]

    @classmethod
    def open(cls, folder: Path) -> EncodedSet:
        """The set that `write` left in ``folder``."""
        names = json.loads((folder / "columns.json").read_text())
        columns = {name: (_map(folder, name), _map(folder, f"{name}.offsets")) for name in names}
        return cls(columns, targets=_map(folder, "targets"))


def write(folder: Path, examples: Iterable[Example]) -> int:
    """Streams examples into ``folder``, never holding more than one; returns how many there were."""
    folder.mkdir(parents=True)
    columns: dict[str, _Column] = {}
    count = 0
    with _Array(folder, "targets", np.int64) as targets:
        for example in examples:
            if not columns:
                columns = {name: _Column(folder, name, values.dtype) for name, values in example.items()}
            for name, values in example.items():
                columns[name].append(values)
            targets.append(np.count_nonzero(example["labels"] != IGNORED))
            count += 1
        for column in columns.values():
            column.close()
    (folder / "columns.json").write_text(json.dumps(sorted(columns)))
    return count


def _map(folder: Path, name: str) -> Array:
    # A plain view: slicing a memmap object itself costs six times as much.
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


class _Array:
    """A one-dimensional .npy file that grows: its header is written again at the end."""

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        self._file: BinaryIO = (folder / f"{name}.npy").open("wb")
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that a longer shape fits in the same place.
        shape = {"shape": (self._length,), "fortran_order": False, "descr": npy.dtype_to_descr(self._dtype)}
        npy.write_array_header_1_0(self._file, shape)

    def append(self, values: Any) -> None:
        array = np.asarray(values, dtype=self._dtype).reshape(-1)
        self._file.write(array.tobytes())
        self._length += len(array)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Column:
    """The values of one column end to end, and where each example's begin."""

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        self._values = _Array(folder, name, dtype)
        self._offsets = _Array(folder, f"{name}.offsets", np.int64)
        self._end = 0
        self._offsets.append(0)

    def append(self, values: Array) -> None:
        self._values.append(values)
        self._end += len(values)
        self._offsets.append(self._end)

    def close(self) -> None:
        self._values.close()
        self._offsets.close()
