"""Documents laid end to end in sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from distrib.tasks.base import Example


def pack(documents: Iterable[tuple[Sequence[int], int]], *, length: int) -> Iterator[Example]:
    """Sequences of ``length`` positions from documents: their tokens, and their size in bytes.

    ``labels`` hold the next token of the same document, also where it lies in the next sequence.
    ``position_ids`` start at 0 with each document, and again where a sequence begins. ``num_bytes``
    (one number) counts the documents that begin in the sequence, so that all sequences together
    count every document once.
    """
    ready: list[Example] = []
    room = length
    for tokens, size in documents:
        piece = _piece(tokens, size)
        while len(piece["input_ids"]) >= room:
            yield _joined([*ready, _cut(piece, 0, room)])
            piece, ready, room = _cut(piece, room, None), [], length
        if len(piece["input_ids"]):
            ready.append(piece)
            room -= len(piece["input_ids"])
    if ready:
        yield _joined(ready)


def _piece(tokens: Sequence[int], size: int) -> Example:
    """A document as inputs and labels; the last token is only a label."""
    array = np.array(tokens, np.int32)
    return {"input_ids": array[:-1], "labels": array[1:], "num_bytes": np.array([size], np.int64)}


def _cut(piece: Example, start: int, stop: int | None) -> Example:
    return {
        "input_ids": piece["input_ids"][start:stop],
        "labels": piece["labels"][start:stop],
        "num_bytes": piece["num_bytes"] if start == 0 else np.zeros(1, np.int64),
    }


def _joined(pieces: Sequence[Example]) -> Example:
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in ("input_ids", "labels")}
    positions = [np.arange(len(piece["input_ids"]), dtype=np.int32) for piece in pieces]
    num_bytes = np.sum([piece["num_bytes"] for piece in pieces], axis=0)
    return {**joined, "position_ids": np.concatenate(positions), "num_bytes": num_bytes}
