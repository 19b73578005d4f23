"""Microbatches are shared out by speed as well as whole ones can be, each to exactly one rank."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from itertools import product

import pytest
import torch

from distrib.core import DataShard
from distrib.parallel.balance import Balancer, Speeds, Stopwatch, deal, owners_by_speed, share_out


def finish(shares: list[int], speeds: list[float]) -> float:
    """When the last rank is done."""
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_is_done_sooner(seed: int) -> None:
    """Against every way to give each of three ranks one piece or more."""
    draw = random.Random(seed)
    speeds = [draw.uniform(0.2, 3.0) for _ in range(3)]
    count = draw.randint(3, 12)
    best = min(
        finish(list(shares), speeds)
        for shares in product(range(1, count + 1), repeat=3)
        if sum(shares) == count
    )
    shares = share_out(speeds, count)
    assert sum(shares) == count
    assert min(shares) >= 1
    assert finish(shares, speeds) == pytest.approx(best)


@pytest.mark.parametrize("size", [2, 3, 4, 16])
def test_the_loss_from_whole_pieces_is_bounded(size: int) -> None:
    """At most 1 + (N - 1) / M times the ideal, where one piece of the slowest rank fits into that."""
    draw = random.Random(size)
    for _ in range(200):
        speeds = [draw.uniform(1.0, 3.0) for _ in range(size)]
        count = draw.randint(3 * size, 12 * size)
        ideal = count / sum(speeds)
        assert finish(share_out(speeds, count), speeds) <= ideal * (1 + (size - 1) / count) + 1e-12


def test_three_times_slower_gets_a_third() -> None:
    """Of eight microbatches the fast rank runs six; and 7 (N - 1) always suffice for 1.15."""
    assert share_out([3.0, 1.0], 8) == [6, 2]
    assert finish(share_out([3.0, 1.0], 7), [3.0, 1.0]) <= 1.15 * 7 / 4
    assert share_out([1.0, 1.0, 1.0], 2) == [1, 1, 0]


@pytest.mark.parametrize(("size", "count"), [(1, 3), (2, 5), (3, 4), (3, 5), (3, 7), (4, 2), (4, 4)])
def test_equal_speeds_take_turns(size: int, count: int) -> None:
    """Before anything is measured the assignment is everybody else's."""
    assert list(owners_by_speed((1.0,) * size, count)) == [number % size for number in range(count)]


def test_everybodys_pieces_are_spread_over_the_whole() -> None:
    """The microbatches go from long to short: nobody is given the long ones only."""
    owners = deal([6, 2])
    assert Counter(owners) == {0: 6, 1: 2}
    assert [owners[:4].count(1), owners[4:].count(1)] == [1, 1]


def test_a_shard_takes_by_owner_in_steps_and_in_turn_elsewhere() -> None:
    """An evaluation belongs to no step and is shared out in turn."""
    items = ["a", "b", "c", "d", "e"]
    shards = [
        DataShard(index=index, count=2, owners=lambda step, count: [step % 2] * count) for index in range(2)
    ]
    assert [list(shard.take(items, step=3)) for shard in shards] == [[], items]
    assert [list(shard.take(items)) for shard in shards] == [["a", "c", "e"], ["b", "d"]]


def test_speeds_count_only_from_where_nobody_has_looked_ahead() -> None:
    """What is learnt after a step changes no step that a loader may have collated already."""
    balancer = Balancer(rank=0, size=2, device=torch.device("cpu"), prefetch=3)
    owners = balancer.shard.owners
    assert owners is not None
    before = [list(owners(step, 8)) for step in range(40)]
    balancer._learn([1.0, 3.0], first=14)
    after = [list(owners(step, 8)) for step in range(40)]
    assert after[:14] == before[:14]
    assert all(owners.count(0) == 6 for owners in after[14:])
    balancer._learn([1.0, 0.0], first=30)  # a rank that measured nothing
    assert [list(owners(step, 8)) for step in range(40)] == after
    assert balancer.measures() == {"speed_spread": pytest.approx(3.0)}


def test_a_rank_that_is_not_there_gets_none() -> None:
    """A speed of 0 says so; the others share out everything."""
    assert share_out([2.0, 0.0, 1.0], 6) == [4, 0, 2]
    assert share_out([1.0, 0.0, 1.0, 1.0], 2) == [1, 0, 1, 0]
    assert set(owners_by_speed((0.0, 1.0), 5)) == {1}


def test_of_speeds_told_anew_the_last_count() -> None:
    """From their step on, whatever was known of later ones; told again they change nothing, and a step keeps
    the speeds that count for it, however many are known of later ones."""
    speeds = Speeds(size=2, lead=4)
    speeds.learn([0.0, 1.0], first=3)
    speeds.learn([0.0, 1.0], first=5)
    speeds.learn([1.0, 0.0], first=3)
    assert [speeds.owners(step, 2) for step in (2, 3, 5)] == [[0, 1], [0, 0], [0, 0]]
    for first in range(4, 8):
        speeds.learn([1.0, 1.0], first=first)
        speeds.learn([1.0, 0.0], first=3)
    assert [speeds.owners(step, 2) for step in (2, 3, 4, 7)] == [[0, 1], [0, 0], [0, 1], [0, 1]]
    assert speeds.spread == 1.0


def test_a_stopwatch_forgets_what_it_told() -> None:
    """The mean is of what ran since the last time."""
    watch = Stopwatch(torch.device("cpu"))
    assert watch.take() == 0.0
    with watch.timed(nullcontext):
        sum(range(1000))
    assert watch.take() > 0.0
    assert watch.take() == 0.0
