"""A source, a tokenizer and a model recipe that are small enough to check by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrib.data.base import Corpus, Record, Source
from distrib.data.encoded import EncodedSet, write
from distrib.data.files import digest
from distrib.models.gpt import GPT

SENTENCES = ["red apple", "green pear tree", "blue sky over the sea", "red wine", "green grass", "deep blue"]


class Words(Source):
    """Given records; counts how often they were read."""

    def __init__(self, records: Sequence[Record], heldout: Sequence[Record]) -> None:
        self.records, self.heldout = records, heldout
        self.times_loaded = 0

    def fingerprint(self) -> str:
        return digest(self.records, self.heldout)

    def load(self) -> Corpus:
        self.times_loaded += 1
        return Corpus(train=self.records, heldout=self.heldout, notes={"split": "given"})


class WordsModel(GPT):
    """A real byte-level BPE and a very small decoder; counts how often the tokenizer was made."""

    def __init__(self) -> None:
        super().__init__(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2)
        self.times_tokenizer = 0

    def tokenizer(self, corpus: Corpus) -> Any:
        self.times_tokenizer += 1
        return super().tokenizer(corpus)


def colour_records() -> list[Record]:
    return [
        {"text": text, "label": text.split()[0], "where": f"colours:{line}"}
        for line, text in enumerate(SENTENCES, start=1)
        if text.split()[0] in ("red", "green", "blue")
    ]


def encoded_of_lengths(folder: Path, lengths: Sequence[int]) -> EncodedSet:
    """Examples whose tokens and label are all their own number."""
    examples = (
        {"input_ids": np.full(length, number, np.int32), "labels": np.array([number], np.int32)}
        for number, length in enumerate(lengths)
    )
    write(folder, examples)
    return EncodedSet.open(folder)


def random_lengths(count: int, *, seed: int = 0) -> list[int]:
    draws = np.random.PCG64(seed).random_raw(count)
    return [int(draw % 40) + 1 for draw in itertools.chain(draws)]
