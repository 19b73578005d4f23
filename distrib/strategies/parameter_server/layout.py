"""Which elements of which parameter every server holds, and in which messages they travel.

Parameters, in the order in which forward needs them, are gathered into buckets of about one size; each
bucket is cut into as many equal runs as there are servers. So the servers hold equal bytes to within
an element per bucket, every server is busy with every bucket, and a large tensor lies on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from distrib.parallel.blocks import transformer_blocks


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of one parameter that one server holds."""

    name: str
    elements: slice
    """Of the flattened parameter."""
    place: slice
    """In the server's vector."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Whole parameters that are sent together: one message to and from each server."""

    starts: Mapping[str, int]
    """Where each parameter begins in the bucket's vector."""
    numel: int
    cuts: tuple[slice, ...]
    """By server: its run of the bucket's vector."""
    places: tuple[slice, ...]
    """By server: where that run stands in the server's vector."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Buckets in forward order, and each server's pieces."""

    buckets: tuple[Bucket, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    """By server; at most one of each parameter."""

    def length(self, server: int) -> int:
        """Elements that a server holds."""
        end: int = self.buckets[-1].places[server].stop
        return end


def make_layout(sizes: Mapping[str, int], *, num_servers: int, bucket_numel: int) -> Layout:
    """Cuts parameters with these numbers of elements, in this order."""
    buckets: list[Bucket] = []
    pieces: list[list[Piece]] = [[] for _ in range(num_servers)]
    ends = [0] * num_servers
    for group in _groups(sizes, bucket_numel=bucket_numel):
        bucket = _cut(group, ends)
        buckets.append(bucket)
        for server in range(num_servers):
            pieces[server] += _pieces(bucket, group, server)
            ends[server] = bucket.places[server].stop
    return Layout(buckets=tuple(buckets), pieces=tuple(map(tuple, pieces)))


def _groups(sizes: Mapping[str, int], *, bucket_numel: int) -> list[dict[str, int]]:
    groups: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if groups[-1] and sum(groups[-1].values()) + size > bucket_numel:
            groups.append({})
        groups[-1][name] = size
    return groups


def _cut(group: Mapping[str, int], ends: list[int]) -> Bucket:
    starts, numel = {}, 0
    for name, size in group.items():
        starts[name] = numel
        numel += size
    bounds = [numel * server // len(ends) for server in range(len(ends) + 1)]
    cuts = [slice(a, b) for a, b in pairwise(bounds)]
    places = [slice(end, end + cut.stop - cut.start) for end, cut in zip(ends, cuts, strict=True)]
    return Bucket(starts=starts, numel=numel, cuts=tuple(cuts), places=tuple(places))


def _pieces(bucket: Bucket, group: Mapping[str, int], server: int) -> list[Piece]:
    cut, place = bucket.cuts[server], bucket.places[server]
    found = []
    for name, size in group.items():
        start = bucket.starts[name]
        first, last = max(start, cut.start), min(start + size, cut.stop)
        if first < last:
            offset = place.start - cut.start
            found.append(
                Piece(
                    name=name,
                    elements=slice(first - start, last - start),
                    place=slice(first + offset, last + offset),
                )
            )
    return found


def in_forward_order(module: nn.Module) -> tuple[dict[str, nn.Parameter], list[tuple[nn.Module, set[str]]]]:
    """Trained parameters in the order in which forward needs them, and what needs which.

    What lies outside the transformer's blocks comes first and is needed by the whole model, then block by
    block. A block is the smallest unit, because modules inside of one may use each other's weights
    without calling each other, as `nn.MultiheadAttention` does.
    """
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    users = [
        (block, {names[id(p)] for p in block.parameters() if id(p) in names})
        for block in transformer_blocks(module)
    ]
    inside = set().union(*(needed for _, needed in users))
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    order = [name for name in trained if name not in inside] + [name for name in trained if name in inside]
    users.insert(0, (module, set(trained) - inside))
    return {name: trained[name] for name in order}, users
