"""A server's state when a step is run again, and when somebody comes into the running job."""

from __future__ import annotations

import json
import threading
from unittest.mock import Mock

import torch
from pushes import push

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.hall import Hall, Result
from distrib.strategies.parameter_server.rules import Bounded, Unbounded
from distrib.strategies.parameter_server.sharing import Sharing


def hall(*, num_workers: int = 3) -> Hall:
    sharing = Sharing(num_workers=num_workers, ahead=0)
    return Hall(
        Bounded(staleness=0),
        num_workers=num_workers,
        may_lose=lambda rank: True,
        min_workers=1,
        sharing=sharing,
    )


def test_a_step_is_run_again_by_those_who_are_there() -> None:
    """Their pushes are dropped, they share out the lost one's microbatches of that step already."""
    made, dropped = hall(), [push(0, 5), push(1, 5)]
    for each in dropped:
        made.push(each)
    assert made.due() == []
    made.lose(2, LaunchError("lost worker rank 2"))
    assert made.due() == dropped
    made.redo()
    assert all(each.redo and not each.applied for each in dropped)
    assert made.due() == []
    assert made.decisions_after(4) == [(5, [1.0, 1.0, 0.0])]
    again = [push(0, 5, redone=1), push(1, 5, redone=1)]
    for each in again:
        made.push(each)
    assert made.due() == again
    made.finish(again, Result())
    assert all(each.applied for each in again)
    assert made.version == 6


def test_a_push_of_the_time_before_is_dropped_by_who_takes_over() -> None:
    """A worker that has not heard that the step is run again sends it once more."""
    before, after = hall(), hall()
    before.push(push(0, 5))
    before.redo()
    after.restore(json.loads(json.dumps(before.state())), totals={})
    late = push(0, 5)
    after.push(late)
    assert late.redo
    assert after.due() == []


def test_who_takes_over_knows_the_totals_that_may_be_asked_for_again() -> None:
    """Those of the last meeting and the one before; of those it had been told, no more than their names."""
    before, after, session = hall(num_workers=1), hall(num_workers=1), Mock(beat_seconds=1.0)
    for number in (1, 2, 3):
        vector = torch.full((2,), number / 3, dtype=torch.float64)
        before.meet(0, (5, number), vector, session=session)
        told = {key: total for key, total in before.totals.items() if key not in after.totals}
        after.restore(json.loads(json.dumps(before.state())), totals=told)
    assert after.totals.keys() == {(5, 2), (5, 3)}
    again = after.meet(0, (5, 2), torch.zeros(2, dtype=torch.float64), session=session)
    assert again.tolist() == [2 / 3, 2 / 3]


def test_a_resumed_job_counts_on() -> None:
    """Also where each push makes an update: a worker keeps what it pushed until its version says it is in."""
    made = Hall(Unbounded(), num_workers=2, may_lose=lambda rank: True, min_workers=1)
    for each in (push(0, 100), push(1, 100)):
        made.push(each)
        assert made.due() == [each]
        made.finish([each], Result())
        assert made.version is not None
        assert made.version > each.step
    assert made.version == 102


def test_a_push_of_an_earlier_life_is_not_taken_for_one_of_this() -> None:
    """What was there of it is dropped, what comes still is passed over."""
    made = hall()
    made.push(mine := push(0, 5))
    made.push(push(1, 5))
    made.lose(1, LaunchError("lost worker rank 1"))
    made.push(last_words := push(1, 5))
    assert last_words.applied
    assert made.join(1, life=1, step=None)[0] == 5
    made.push(push(1, 5))
    made.lose(2, LaunchError("lost worker rank 2"))
    assert made.due() == []
    made.push(anew := push(1, 5, life=1))
    assert made.due() == [mine, anew]


def test_a_push_that_is_ahead_waits() -> None:
    """Who has come back by another server's word knows of that step's repetition before this one."""
    made = hall(num_workers=2)
    early, current = push(1, 5, redone=1), push(0, 5)
    made.push(early)
    assert made.due() == []
    made.push(current)
    assert made.due() == [current]
    made.redo()
    assert current.redo
    assert not early.redo
    made.push(again := push(0, 5, redone=1))
    assert made.due() == [again, early]


def test_who_comes_back_waits_for_the_update_before_its_step() -> None:
    """The first server has made it and said so; with this one's weights of before it would be a step late."""
    made = hall(num_workers=2)
    made.lose(1, LaunchError("lost worker rank 1"))
    made.push(last := push(0, 5))
    joined = list[int]()
    joining = threading.Thread(target=lambda: joined.append(made.join(1, life=1, step=6)[0]), daemon=True)
    joining.start()
    joining.join(0.2)
    assert joined == []
    with made.told():
        made.finish([last], Result())
    joining.join(5)
    assert joined == [6]
    assert made.version == 6
