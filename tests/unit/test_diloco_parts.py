"""DiLoCo's pure parts: when fragments are exchanged, how numbers are rounded, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distrib.errors import ConfigError
from distrib.parallel.quantize import BLOCK, LEVELS, Quantize, decode, encode
from distrib.strategies.base import Strategy
from distrib.strategies.diloco import DiLoCo
from distrib.strategies.diloco.outer import cut
from distrib.strategies.diloco.rounds import Rounds
from distrib.strategies.single import Single
from distrib.testing.fake import Fake


@pytest.mark.parametrize(("every", "fragments", "overlap"), [(1, 1, 0), (7, 3, 0), (7, 3, 6), (50, 4, 20)])
def test_every_fragment_leaves_and_arrives_once_a_round(every: int, fragments: int, overlap: int) -> None:
    """In any ``sync_every`` steps in a row each fragment leaves once, and arrives ``overlap`` steps later."""
    rounds = Rounds(sync_every=every, num_fragments=fragments, overlap=overlap)
    for start in range(every, 3 * every):
        window = range(start, start + every)
        assert sorted(f for done in window for f in rounds.leaving(done)) == list(range(fragments))
    open_fragments: list[int] = []
    for done in range(1, 4 * every):
        for fragment in rounds.arriving(done) if overlap else []:
            open_fragments.remove(fragment)
        open_fragments += rounds.leaving(done) if overlap else []
        assert sorted(open_fragments) == rounds.under_way(done)


def test_replicas_are_alike_only_after_a_whole_exchange() -> None:
    """Settled is the start, and the end of a round in which nothing is cut or late."""
    assert [done for done in range(9) if Rounds(sync_every=4, num_fragments=1, overlap=0).settled(done)] == [
        0,
        4,
        8,
    ]
    for late in (
        Rounds(sync_every=4, num_fragments=2, overlap=0),
        Rounds(sync_every=4, num_fragments=1, overlap=1),
    ):
        assert [done for done in range(9) if late.settled(done)] == [0]


@pytest.mark.parametrize(
    ("quantize", "bytes_per_number", "unit"),
    [("none", 4.0, 0.0), ("bf16", 2.0, 2.0**-8), ("int8", 1 + 4 / BLOCK, 0.5 / LEVELS)],
)
def test_rounding_is_as_fine_as_promised(quantize: Quantize, bytes_per_number: float, unit: float) -> None:
    """bf16 is off by 2^-8 of a number, int8 by 1/254 of the largest in its block; zeros stay zeros."""
    values = torch.randn(8, BLOCK, generator=torch.Generator().manual_seed(1))
    values *= torch.logspace(-6, 2, 8)[:, None]
    values[3] = 0.0
    message = encode(values.view(-1), quantize)
    assert message.numel() == bytes_per_number * values.numel()
    arrived = decode(message, quantize, dtype=torch.float32).view_as(values)
    scale = values.abs() if quantize == "bf16" else values.abs().amax(dim=1, keepdim=True)
    assert ((arrived - values).abs() <= 1.001 * unit * scale).all()
    if quantize != "none":
        assert not torch.equal(arrived, values)


def test_numbers_that_are_not_finite_arrive_as_such() -> None:
    """An infinity is not rounded to something that looks right."""
    values = torch.ones(BLOCK)
    values[7] = torch.inf
    for quantize in ("none", "bf16", "int8"):
        assert not decode(encode(values, quantize), quantize, dtype=torch.float32).isfinite().all()


def test_fragments_hold_every_parameter_once() -> None:
    """Each parameter is in one fragment, in order, and comes back out of it as it went in."""
    weights = {f"w{n}": torch.rand(n + 1, 3) for n in range(7)}
    before = {name: weight.clone() for name, weight in weights.items()}
    fragments = cut(weights, num_fragments=3)
    assert [name for fragment in fragments for name in fragment.names] == list(weights)
    for fragment in fragments:
        fragment.scatter(fragment.outer * 2, weights)
    assert all(torch.equal(weights[name], 2 * before[name]) for name in weights)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"sync_every": 0}, "sync_every"),
        ({"replica_size": 3}, "replica_size"),
        ({"replica_size": 0}, "replica_size"),
        ({"outer_lr": 0.0}, "outer_lr"),
        ({"outer_momentum": 1.0}, "outer_momentum"),
        ({"sync_every": 4, "num_fragments": 5}, "num_fragments"),
        ({"sync_every": 4, "overlap": 4}, "overlap"),
        ({"keep_local": 1.0}, "keep_local"),
    ],
)
def test_impossible_settings_are_refused_by_key(options: dict[str, Any], key: str) -> None:
    """Before a process starts, with the key and what would work."""
    with pytest.raises(ConfigError, match=rf"strategy\.{key}="):
        DiLoCo(inner=Single(), **options).check(num_processes=4)


def test_an_inner_strategy_is_asked_about_its_own_ranks() -> None:
    """Single over two ranks is refused by its own words; so is an engine that keeps its weights."""
    with pytest.raises(ConfigError, match="is for one process, not 2"):
        DiLoCo(inner=Single(), replica_size=2).check(num_processes=4)
    with pytest.raises(ConfigError, match=r"strategy\.inner=ddp: a target is expected"):
        DiLoCo(inner="ddp").check(num_processes=2)  # type: ignore[arg-type]
    inner: Strategy = Fake()
    with pytest.raises(ConfigError, match=r"strategy\.inner=Fake: keeps its weights to itself"):
        inner.weights()
