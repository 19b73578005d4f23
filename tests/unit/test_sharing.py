"""The parameter server's shares: all workers go by the same, however far apart and whoever is lost."""

from __future__ import annotations

import json
import random

import pytest

from distrib.parallel.balance import Speeds
from distrib.strategies.parameter_server.hall import Hall
from distrib.strategies.parameter_server.rules import Bounded
from distrib.strategies.parameter_server.sharing import EVERY, Sharing

AHEAD = 2


def speeds_at(sharing: Sharing, step: int) -> list[float]:
    return [speeds for first, speeds in sharing.decisions if first <= step][-1]


def test_a_window_is_measured_and_counts_later() -> None:
    """By the usual time of a microbatch, which a single slow one does not change."""
    sharing = Sharing(num_workers=2, ahead=AHEAD)
    for step in range(EVERY):
        late = 9.0 if step == 0 else 0.1
        sharing.update(step, seconds={0: late, 1: 0.3}, present={0, 1})
    first = EVERY - 1 + AHEAD + 1
    assert sharing.later_than(EVERY) == [(first, pytest.approx([1 / 0.1, 1 / 0.3]))]
    assert speeds_at(sharing, first - 1) == [1.0, 1.0]


def test_a_lost_worker_has_no_share_until_it_is_back() -> None:
    """It is known at once; who comes back is taken to be like the others until it is measured."""
    sharing = Sharing(num_workers=3, ahead=AHEAD)
    for step in range(EVERY):
        sharing.update(step, seconds=dict.fromkeys(range(3), 0.1), present={0, 1, 2})
    lost, back = EVERY, EVERY + 20
    for step in range(lost, back):
        sharing.update(step, seconds={0: 0.1, 2: 0.1}, present={0, 2})
        assert sharing.decisions[-1][1] == pytest.approx([10.0, 0.0, 10.0])
    assert speeds_at(sharing, back)[1] == 0.0
    sharing.update(back, seconds={0: 0.1, 1: 0.1, 2: 0.1}, present={0, 1, 2})
    assert sharing.decisions[-1] == (back + AHEAD + 1, pytest.approx([10.0, 10.0, 10.0]))


def test_who_has_a_share_is_missed() -> None:
    """And nobody else: neither who was lost before, nor who has come back and waits for one."""
    sharing = Sharing(num_workers=3, ahead=0)
    assert sharing.lacks({0, 1})
    assert not sharing.lacks({0, 1, 2})
    sharing.redo(0, present={0, 1})
    assert not sharing.lacks({0, 1})
    sharing.update(0, seconds={0: 0.1, 1: 0.1, 2: 0.1}, present={0, 1, 2})
    assert sharing.lacks({0, 1})


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_all_workers_go_by_the_same(seed: int, staleness: int, prefetch: int) -> None:
    """Of random speed, lost and back at random; each looks as far ahead as it may, as soon as it may."""
    chance, size = random.Random(seed), 4
    sharing = Sharing(num_workers=size, ahead=staleness + prefetch)
    speeds = {rank: Speeds(size=size, lead=staleness + prefetch + 1) for rank in range(size)}
    clocks = dict.fromkeys(range(size), 0)
    """Steps that each has pushed."""
    waiting, version, decided = set[int](), 0, set[tuple[float, ...]]()
    seen: dict[int, list[int]] = {}

    def look(rank: int, step: int) -> None:
        """Finds the owners of what may be collated before ``step`` runs, as all who have looked did."""
        for ahead in range(step, step + prefetch + 1):
            owners = list(speeds[rank].owners(ahead, 12))
            assert seen.setdefault(ahead, owners) == owners

    for rank in range(size):
        look(rank, 0)
    while version < 300:
        rank = chance.randrange(size)
        if rank not in clocks:  # lost: comes back
            clocks[rank], speeds[rank] = version, Speeds(size=size, lead=staleness + prefetch + 1)
            for first, told in sharing.decisions:
                speeds[rank].learn(told, first=first)
            look(rank, version)
        elif rank and chance.random() < 0.02:
            del clocks[rank]
            waiting.discard(rank)
        elif rank not in waiting:
            clocks[rank] += 1
            waiting.add(rank)
        if not staleness and min(clocks.values()) > version and chance.random() < 0.1:
            # Somebody was lost in the step: all who are there run it again, with what was collated after it.
            sharing.redo(version, present=set(clocks))
            for ahead in [ahead for ahead in seen if ahead >= version]:
                del seen[ahead]
            for rank in sorted(waiting):
                clocks[rank] = version
                for first, told in sharing.later_than(version - 1):
                    speeds[rank].learn(told, first=first)
                look(rank, version)
            waiting.clear()
        elif min(clocks.values()) > version:
            seconds = {rank: chance.uniform(0.1, 0.5) for rank in clocks}
            sharing.update(version, seconds=seconds, present=set(clocks))
            version += 1
        for rank in [rank for rank in waiting if version >= clocks[rank] - staleness]:
            for first, told in sharing.later_than(clocks[rank] - 1):
                speeds[rank].learn(told, first=first)
            look(rank, clocks[rank])
            waiting.discard(rank)
        decided |= {tuple(told) for _, told in sharing.decisions}
    assert len(decided) > 30, "nothing was ever decided anew"
    assert len({tuple(owners) for owners in seen.values()}) > 10


def test_who_takes_over_knows_the_decisions() -> None:
    """A server's state goes to its backup as JSON."""
    halls = [
        Hall(
            Bounded(staleness=0),
            num_workers=2,
            may_lose=lambda rank: True,
            min_workers=1,
            sharing=Sharing(num_workers=2, ahead=AHEAD),
        )
        for _ in range(2)
    ]
    mine, backup = (hall.sharing for hall in halls)
    assert mine is not None
    assert backup is not None
    mine.update(0, seconds={0: 0.1}, present={0})
    halls[1].restore(json.loads(json.dumps(halls[0].state())), totals={})
    assert backup.decisions == mine.decisions
    assert backup.decisions[-1] == (AHEAD + 1, [1.0, 0.0])
