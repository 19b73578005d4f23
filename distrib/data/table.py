"""Your own data: CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

from pathlib import Path

from distrib.data.base import Corpus, Record, Source
from distrib.data.files import digest, digest_files
from distrib.data.rows import RowReader
from distrib.data.split import draw, separate
from distrib.data.tabular import SUFFIXES, read_rows
from distrib.errors import ConfigError, DataError


class Table(Source):
    """Records from one file, or from every table under a directory, in the order of their names.

    In JSON Lines and Parquet, ``text`` and ``label`` may be lists: the words and their tags.
    Raises `DataError` naming file and line; ``skip_bad_rows`` counts them instead.
    """

    def __init__(
        self,
        *,
        path: str,
        text: str = "text",
        label: str | None = "label",
        heldout_path: str | None = None,
        heldout_fraction: float = 0.1,
        split_seed: int = 0,
        skip_bad_rows: bool = False,
    ) -> None:
        self.path = path
        self.text = text
        self.label = label
        self.heldout_path = heldout_path
        self.heldout_fraction = heldout_fraction
        self.split_seed = split_seed
        self.skip_bad_rows = skip_bad_rows

    def fingerprint(self) -> str:
        paths = [("data.path", self.path), ("data.heldout_path", self.heldout_path)]
        contents = [_digest(key, path) for key, path in paths if path is not None]
        choices = [self.text, self.label, self.heldout_fraction, self.split_seed, self.skip_bad_rows]
        return digest("table", contents, choices)

    def load(self) -> Corpus:
        reader = RowReader(text=self.text, label=self.label, skip_bad_rows=self.skip_bad_rows)
        train = self._read("data.path", self.path, reader=reader)
        if self.heldout_path is None:
            notes = {"bad_rows_skipped": reader.skipped}
            return draw(train, fraction=self.heldout_fraction, seed=self.split_seed, notes=notes)
        heldout = self._read("data.heldout_path", self.heldout_path, reader=reader)
        notes_given: dict[str, int | str] = {"bad_rows_skipped": reader.skipped, "split": self.heldout_path}
        return separate(train, heldout, notes=notes_given)

    def _read(self, key: str, path: str, *, reader: RowReader) -> list[Record]:
        records = [record for file in _files(key, path) for record in reader.records(read_rows(file))]
        if not records:
            raise DataError(f"{path}: no usable rows ({reader.skipped} bad rows skipped)")
        return records


def _files(key: str, path: str) -> list[Path]:
    root = Path(path).expanduser()
    if root.is_dir():
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ConfigError(key, path, f"no {', '.join(SUFFIXES)} file in this directory")
        return files
    if not root.exists():
        raise ConfigError(key, path, "no such file or directory")
    if root.suffix.lower() not in SUFFIXES:
        raise ConfigError(key, path, f"a name that ends in {', '.join(SUFFIXES)}")
    return [root]


def _digest(key: str, path: str) -> str:
    root = Path(path).expanduser()
    return digest_files(_files(key, path), root=root if root.is_dir() else root.parent)
