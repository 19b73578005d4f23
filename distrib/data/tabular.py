"""Rows of CSV, TSV, JSON Lines and Parquet files, each with its ``file:line``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distrib.errors import DataError

Rows = Iterator[tuple[str, Mapping[str, Any] | DataError]]
"""``(where, row)``; a row that cannot be parsed is its own `DataError`, for the reader to raise or count."""

csv.field_size_limit(1 << 30)  # the default, 128 KiB, refuses long documents


def read_rows(path: Path) -> Rows:
    """Rows in file order. Raises `DataError` where the file itself cannot be read."""
    try:
        yield from SUFFIXES[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start} of a block): convert the file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _csv(path: Path) -> Rows:
    yield from _delimited(path, ",")


def _tsv(path: Path) -> Rows:
    yield from _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            for values in reader:
                if values:  # csv gives an empty list for a blank line
                    yield _row(header, values, where=f"{path}:{reader.line_num}")
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: {error}") from error


def _row(header: list[str], values: list[str], *, where: str) -> tuple[str, Mapping[str, Any] | DataError]:
    if len(values) != len(header):
        return where, DataError(f"{where}: {len(values)} fields where the header has {len(header)}")
    return where, dict(zip(header, values, strict=True))


def _json_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parsed(line, where=f"{path}:{number}")


def _parsed(line: str, *, where: str) -> tuple[str, Mapping[str, Any] | DataError]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return where, DataError(f"{where}: not JSON: {error.msg} at column {error.colno}")
    if not isinstance(row, dict):
        return where, DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return where, row


def _parquet(path: Path) -> Rows:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


SUFFIXES: Mapping[str, Callable[[Path], Rows]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
