"""The standard library's own sources: text for a language model that is on every machine."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path

from distrib.data.base import Corpus, Record, Source
from distrib.data.files import digest, digest_files
from distrib.data.split import draw
from distrib.errors import DataError

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})
"""Other packages, and parts that Linux distributions ship apart."""


class PythonLibrary(Source):
    """Modules of the running Python's library, one document each; whole files are held out."""

    def __init__(self, *, heldout_fraction: float = 0.05, split_seed: int = 0) -> None:
        self.heldout_fraction = heldout_fraction
        self.split_seed = split_seed

    def fingerprint(self) -> str:
        files = digest_files(self._paths(), root=self._root())
        return digest("python_library", files, self.heldout_fraction, self.split_seed)

    def load(self) -> Corpus:
        records = [record for record in map(_read, self._paths()) if record["text"]]
        return draw(records, fraction=self.heldout_fraction, seed=self.split_seed, notes={})

    def _root(self) -> Path:
        return Path(sysconfig.get_paths()["stdlib"])

    def _paths(self) -> list[Path]:
        root = self._root()
        paths = sorted(p for p in root.rglob("*.py") if LEFT_OUT.isdisjoint(p.relative_to(root).parts))
        if not paths:
            raise DataError(
                f"{root}: no sources of the standard library here; data=table reads your own text"
            )
        return paths


def _read(path: Path) -> Record:
    with tokenize.open(path) as file:  # honours the encoding that a source file declares
        return {"text": file.read(), "where": f"{path}:1"}
