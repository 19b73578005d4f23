"""Held-out data: drawn from the content, and never overlapping the training data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from distrib.data.base import Corpus, Record
from distrib.errors import ConfigError, DataError


def content_key(record: Record) -> bytes:
    """What two records must share to count as duplicates: the text, whatever its label or place."""
    text = record.get("words", record.get("text"))
    return hashlib.sha256(json.dumps(text).encode()).digest()


def draw(records: Sequence[Record], *, fraction: float, seed: int, notes: Mapping[str, int | str]) -> Corpus:
    """Holds out ``fraction`` of the distinct texts.

    Which ones is a function of their content and ``seed`` alone: neither the order of files nor
    the place of a row matters, and a new row moves few others.
    """
    check_fraction(fraction)
    distinct = {content_key(record): record for record in reversed(records)}
    by_chance = sorted(distinct, key=lambda key: hashlib.sha256(b"%d:" % seed + key).digest())
    count = max(1, round(fraction * len(distinct)))
    if count >= len(distinct):
        raise DataError(f"{len(distinct)} distinct texts are too few to hold out {fraction:.0%} of them")
    heldout = [distinct[key] for key in by_chance[:count]]
    split = f"{fraction:.0%} of the distinct texts, drawn by seed {seed}"
    return separate(records, heldout, notes={**notes, "split": split})


def separate(train: Sequence[Record], heldout: Sequence[Record], *, notes: Mapping[str, int | str]) -> Corpus:
    """Removes from the training data what is also held out, and counts every duplicate.

    Copies within the training data stay: they may be how often something occurs.
    """
    unseen = {content_key(record) for record in heldout}
    keys = [content_key(record) for record in train]
    kept = [record for record, key in zip(train, keys, strict=True) if key not in unseen]
    return Corpus(
        train=kept,
        heldout=heldout,
        notes={
            **notes,
            "duplicates_across_split_removed": _overlap(keys, unseen, drawn=train, heldout=heldout),
            "duplicates_within_train": len(kept) - len(set(keys) - unseen),
            "duplicates_within_heldout": len(heldout) - len(unseen),
        },
    )


def _overlap(
    keys: Sequence[bytes], unseen: set[bytes], *, drawn: Sequence[Record], heldout: Sequence[Record]
) -> int:
    """Training records that repeat a held-out text; a record that was itself held out is no repeat."""
    own = {id(record) for record in heldout}
    return sum(key in unseen and id(record) not in own for key, record in zip(keys, drawn, strict=True))


def check_fraction(fraction: float) -> None:
    """Raises `ConfigError` for a held-out share that leaves one side empty."""
    if not 0.0 < fraction < 1.0:
        raise ConfigError("data.heldout_fraction", fraction, "a share between 0 and 1, as 0.1")
