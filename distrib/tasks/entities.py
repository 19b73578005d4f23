"""Entities in tag sequences by the rules of conlleval, seqeval's default mode.

An entity begins at ``B-x``, and also at an ``I-x`` that follows ``O`` or another type; it goes on
over every ``I-x`` of the same type. Source: seqeval 1.2.2, ``sequence_labeling.get_entities``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from distrib.core import IGNORED
from distrib.tasks.tensors import counts

if TYPE_CHECKING:
    from torch import Tensor


def entity_counts(predicted: Tensor, labels: Tensor, *, num_tags: int) -> dict[str, Tensor]:
    """Per type, in float64: entities found exactly (``hit``), ``predicted``, and ``true``.

    ``predicted`` and ``labels`` are ``[sentences, positions]`` of tag numbers ``O, B-x, I-x, B-y, …``;
    positions whose label is `IGNORED` are no words and are passed over.
    """
    words = labels != IGNORED
    sentence = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[words]
    first = torch.ones_like(sentence, dtype=torch.bool)
    first[1:] = sentence[1:] != sentence[:-1]
    (begins, end, kind), (true_begins, true_end, true_kind) = (
        _spans(tags[words], first=first) for tags in (predicted, labels)
    )
    hit = begins & true_begins & (end == true_end) & (kind == true_kind)
    num = num_tags // 2
    return {
        "hit": counts(kind[hit], num=num),
        "predicted": counts(kind[begins], num=num),
        "true": counts(true_kind[true_begins], num=num),
    }


def _spans(tags: Tensor, *, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For words in a row: whether an entity begins there, where it would end, and its type (-1: O)."""
    kind = (tags + 1) // 2 - 1
    follows = torch.zeros_like(first)
    follows[1:] = (kind[1:] == kind[:-1]) & ~first[1:]
    goes_on = follows & (tags > 0) & (tags % 2 == 0)
    begins = (tags > 0) & ~goes_on
    return begins, _next_stop(goes_on), kind


def _next_stop(goes_on: Tensor) -> Tensor:
    """For every place, the next later place that does not go on."""
    size = len(goes_on)
    places = torch.arange(1, size + 1, device=goes_on.device)
    stops = torch.full_like(places, size)
    stops[:-1] = torch.where(goes_on[1:], size, places[:-1])
    reversed_minimum: Tensor = stops.flip(0).cummin(0).values if size else stops
    return reversed_minimum.flip(0)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """``(type, start, end)`` of one sentence's tags, ``end`` not included."""
    found: list[tuple[str, int, int]] = []
    before = ""
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if kind and prefix == "I" and kind == before:
            found[-1] = (kind, found[-1][1], place + 1)
        elif kind:
            found.append((kind, place, place + 1))
        before = kind
    return found
