"""Texts from files, for ``distrib predict``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distrib.data.tabular import SUFFIXES, read_rows
from distrib.errors import DataError


def read_texts(path: Path, *, column: str) -> Iterator[str]:
    """The lines of a ``.txt`` file, or one column of a CSV, TSV, JSON Lines or Parquet file.

    Raises `DataError` naming file and line.
    """
    if path.suffix.lower() in SUFFIXES:
        yield from _column(path, column=column)
    elif path.suffix.lower() in (".txt", ""):
        yield from _lines(path)
    else:
        raise DataError(f"{path}: cannot tell its format; use .txt, {', '.join(SUFFIXES)}")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: convert the file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _column(path: Path, *, column: str) -> Iterator[str]:
    for where, row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        if not isinstance(row.get(column), str):
            found = ", ".join(map(str, row))
            raise DataError(f"{where}: no text in column '{column}' (--text-column); its columns: {found}")
        yield row[column]
