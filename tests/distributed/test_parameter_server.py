"""The parameter server beyond the contract: layout, rules, modes, bytes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pushes import push
from strategies import PARAMETER_SERVER
from test_contract import trained

from distrib.errors import ConfigError, LaunchError
from distrib.parallel.replica import Replica
from distrib.parallel.state import named_weights
from distrib.strategies.parameter_server import ParameterServer
from distrib.strategies.parameter_server.agreement import Leading, lives_of, senders_of
from distrib.strategies.parameter_server.hall import Agreed, EndedError, Hall, Result
from distrib.strategies.parameter_server.layout import in_forward_order, make_layout
from distrib.strategies.parameter_server.rules import Bounded, Seat, Unbounded
from distrib.strategies.parameter_server.session import Message, Op
from distrib.strategies.parameter_server.terms import NOBODY, Holder, Terms
from distrib.testing.proof import Proof, Trajectory, global_batch, job_for, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

SINGLE = {"_target_": "distrib.strategies.single.Single"}
PLAIN_SGD: dict[str, Any] = {"momentum_sgd": True, "momentum": 0.0, "max_grad_norm": None, "lr": 0.1}

pytestmark = pytest.mark.timeout(240)


def ps(**options: Any) -> dict[str, Any]:
    return {**PARAMETER_SERVER, **options}


def exact(proof: Proof) -> Trajectory:
    (alone,) = trained([train(World(), dataclasses.replace(proof, strategy=SINGLE))])
    return alone


@pytest.mark.parametrize("num_servers", [1, 2, 3])
@pytest.mark.parametrize("bucket_numel", [1, 100, 10**6])
def test_layout_covers_every_element_once(num_servers: int, bucket_numel: int) -> None:
    """Servers hold equal shares of every bucket, a large tensor on all of them, and nothing twice."""
    sizes = {"large": 1000, "small": 1, "middle": 37, "other": 64}
    layout = make_layout(sizes, num_servers=num_servers, bucket_numel=bucket_numel)
    seen = {name: torch.zeros(size) for name, size in sizes.items()}
    for server, pieces in enumerate(layout.pieces):
        held = torch.zeros(layout.length(server))
        for piece in pieces:
            seen[piece.name][piece.elements] += 1
            held[piece.place] += 1
        assert held.eq(1).all()
        assert {piece.name for piece in pieces} >= {"large"}
    assert all(count.eq(1).all() for count in seen.values())
    lengths = [layout.length(server) for server in range(num_servers)]
    assert max(lengths) - min(lengths) <= len(layout.buckets)


def test_blocks_need_their_own_weights_and_the_model_the_rest() -> None:
    """What lies outside the blocks comes first; a weight that is tied is there once."""
    parameters, users = in_forward_order(job_for(Proof(strategy=SINGLE)).build_model())
    assert next(iter(parameters)) == "embedding.weight"
    assert len(parameters) == len({id(parameter) for parameter in parameters.values()})
    assert [sorted(names)[0] for _, names in users] == [
        "embedding.weight",
        "blocks.0.attention_in.weight",
        "blocks.1.attention_in.weight",
    ]


def test_a_step_waits_for_those_who_are_there() -> None:
    """An update takes a push of every living worker; one that joins later owes none before."""
    rules = Bounded(staleness=2)
    seats = {0: Seat(rank=0, since=-1), 1: Seat(rank=1, since=-1)}
    pushes = [push(0, 5), push(0, 6)]
    assert rules.due(pushes, seats, version=5) == []
    assert [p.rank for p in rules.due([*pushes, push(1, 5)], seats, version=5)] == [0, 1]
    del seats[1]
    assert rules.due(pushes, seats, version=5) == pushes[:1]
    seats[2] = Seat(rank=2, since=6)
    assert rules.due(pushes, seats, version=5) == pushes[:1]
    assert rules.due(pushes, seats, version=6) == []
    assert [step for step in range(9) if rules.may_go_on(push(0, step), version=5)] == [0, 1, 2, 3, 4, 5, 6]


def test_refusals() -> None:
    """What cannot run is refused by its key, before a process starts."""
    for options, processes, message in [
        ({}, 1, r"strategy\.num_servers=1: 1 processes leave no worker; start at least 2"),
        ({"num_servers": 3}, 3, r"strategy\.num_servers=3"),
        ({"num_servers": 0}, 3, r"strategy\.num_servers=0"),
        ({"mode": "stale", "staleness": -1}, 3, r"strategy\.staleness=-1"),
        ({"damping": True}, 3, r"strategy\.damping=True: is of mode=async"),
        ({"elastic": 0.5}, 3, r"strategy\.elastic=0\.5: is of mode=average"),
        ({"mode": "average", "elastic": 1.0}, 3, r"strategy\.elastic=1\.0"),
        ({"mode": "average", "average_every": 0}, 3, r"strategy\.average_every=0"),
        ({"min_workers": 3}, 3, r"strategy\.min_workers=3: from 1 to .* 2"),
        ({"bucket_mb": 0}, 3, r"strategy\.bucket_mb=0"),
        ({"silent_after": 0}, 3, r"strategy\.silent_after=0"),
        ({"server_backups": 1}, 2, r"strategy\.num_servers=1: 2 processes leave no worker; start at least 3"),
        ({"server_backups": 2}, 9, r"strategy\.server_backups=2: 0 or 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ParameterServer(**options).check(num_processes=processes)  # type: ignore[arg-type]


def test_whom_the_job_may_lose() -> None:
    """Workers but the first where the mode or ``min_workers`` says so; a server where it has a backup."""

    def losable(**options: Any) -> list[int]:
        strategy = ParameterServer(num_servers=2, **options)
        return [rank for rank in range(5) if strategy.may_lose(rank, num_processes=5)]

    assert losable() == []
    assert losable(min_workers=1) == losable(mode="stale") == losable(mode="async") == [1, 2]
    assert losable(server_backups=1) == [1, 2, 3, 4]


def test_one_rank_wins_a_term() -> None:
    """Of two that lost each other one goes on; who has overlooked a term is not let in by the next."""
    world = World(store=torch.distributed.HashStore())
    server, backup, worker = (Terms(world, part=0, first=2) for _ in range(3))
    assert worker.holder() == Holder(rank=2)
    assert backup.claim(3) == Holder(rank=3, since=1)
    assert server.claim(2) is None
    assert worker.successor(Holder(rank=2)) == Holder(rank=3, since=1)
    assert backup.claim(3) == Holder(rank=3, since=1)  # alone now, and still since term 1
    assert server.claim(2) is None
    assert backup.claim(NOBODY) is not None
    assert worker.successor(Holder(rank=3, since=1)) is None


def hall_with(*ranks: int) -> Hall:
    hall = Hall(Unbounded(), num_workers=2, may_lose=lambda rank: True, min_workers=1)
    for rank in ranks:
        hall.push(push(rank, 0))
        hall.finish(hall.due(), Result(loss=math.nan))
    return hall


def test_a_server_whose_workers_are_all_lost_has_not_come_to_its_end() -> None:
    """Where it had been looking elsewhere meanwhile it found no seat taken, and ended as if all was well."""
    hall = Hall(Unbounded(), num_workers=2, may_lose=lambda rank: False, min_workers=1)
    for rank in range(2):
        hall.lose(rank, LaunchError(f"lost worker rank {rank}"))
    with pytest.raises(EndedError):
        hall.is_empty()


def test_a_server_ends_when_its_last_worker_has_been_answered() -> None:
    """It looked between the leaving and the answer, once in a hundred drills, and took the answer with it."""
    hall, has_left, answered = hall_with(), threading.Event(), threading.Event()

    def leave() -> None:
        with hall.told():
            hall.leave(0)
            hall.leave(1)
            has_left.set()
            time.sleep(0.2)
            answered.set()

    leaving = threading.Thread(target=leave)
    leaving.start()
    has_left.wait()
    assert hall.is_empty()
    assert answered.is_set()
    leaving.join()


def test_a_push_sent_again_counts_once() -> None:
    """A server that took over knows what updates were made of; a worker that came anew begins anew."""
    before, after = hall_with(0, 1), hall_with()
    after.restore(json.loads(json.dumps(before.state())), totals=before.totals)
    again, next_one = push(0, 0), push(0, 1)
    after.push(again)
    after.push(next_one)
    assert again.applied
    assert after.due() == [next_one]
    assert after.version == 2
    after.lose(1, LaunchError("gone"))
    after.join(1, life=1, step=None)
    came_back = push(1, 0, life=1)
    after.push(came_back)
    assert not came_back.applied


def test_a_meeting_is_not_held_twice() -> None:
    """A worker that was not answered hears the sum, which others have had, from the server that took over."""
    before, after = hall_with(0), hall_with()
    vectors = {rank: torch.full((2,), 1.0 + rank, dtype=torch.float64) for rank in range(2)}
    session = Mock(beat_seconds=0.02)
    early = threading.Thread(target=before.meet, args=(0, (3, 1), vectors[0]), kwargs={"session": session})
    early.start()
    time.sleep(0.2)
    session.beat.assert_called()  # while it waits for the other
    total = before.meet(1, (3, 1), vectors[1], session=session)
    early.join(5)
    after.restore(json.loads(json.dumps(before.state())), totals=before.totals)
    again = after.meet(0, (3, 1), vectors[0], session=session)
    assert again.tolist() == total.tolist() == [3.0, 3.0]


def leading(hall: Hall, ledger: Mock) -> Leading:
    """The first of two parts, of which nobody opens a session with it."""
    return Leading(hall, ledger, Mock(), others={1: (3, None)})


def test_servers_agree_on_the_pushes_that_all_have() -> None:
    """A worker died in the middle, and the second part's server has not its push: both count anew."""
    hall, ledger = hall_with(), Mock()
    first, answers = leading(hall, ledger), list[Agreed | None]()
    told = list[list[Agreed | None]]()
    ledger.keep.side_effect = lambda: told.append(list(answers))

    def second() -> None:
        for square in (4.0, 5.0):
            asked = Agreed(step=7, senders=[(1, 0)], square=square)
            answers.append(first._answer(1, asked, Mock(beat_seconds=5.0)))

    asking = threading.Thread(target=second)
    asking.start()
    agreed = first.settle(
        [(0, 0), (1, 0)],
        at=(7, 0),
        count=lambda senders: Agreed(step=7, senders=sorted(senders), square=float(len(senders))),
    )
    asking.join(10)
    assert agreed == Agreed(step=7, senders=[(1, 0)], square=1.0 + 5.0)
    assert answers == [None, agreed]  # to be counted anew, and what was agreed on
    assert told == [[None]]  # the backup knew before the second server did


def test_servers_do_not_take_one_life_of_a_worker_for_the_other() -> None:
    """One has what it pushed before it died, the other what it pushed after it came back: neither counts."""
    first = leading(hall_with(), Mock())
    common = first._compare(
        [Agreed(step=7, senders=[(0, 0), (1, 0)]), Agreed(step=7, senders=senders_of(torch.tensor([1, 2])))]
    )
    assert common == [(0, 0)]
    assert first._hall.agreed.step < 7
    assert senders_of(lives_of([(1, 4)], num_workers=3)) == [(1, 4)]


def test_the_leader_ends_after_the_others() -> None:
    """Its threads would wait in gloo when Python ends, which takes the process down with SIGABRT."""
    may_leave, session = threading.Event(), Mock()
    session.hear.side_effect = lambda: may_leave.wait(10) and Message(op=Op.LEAVE, numbers=[])
    first = Leading(hall_with(), Mock(), Mock(open=lambda *_, **__: session), others={1: (3, None)})
    first.begin(0)
    threading.Timer(0.2, may_leave.set).start()
    first.end()
    session.confirm.assert_called_once()


def test_what_was_agreed_on_holds_for_who_takes_over() -> None:
    """The others may have made their updates: nobody is asked again, whatever this server has."""
    before, after = hall_with(), hall_with()
    before.agreed = Agreed(step=7, senders=[(1, 0)], square=6.0)
    after.restore(json.loads(json.dumps(before.state())), totals=before.totals)
    settled = leading(after, Mock()).settle([(0, 0)], at=(7, 0), count=lambda _: pytest.fail("counted"))
    assert settled == before.agreed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size", "proof"),
    [
        pytest.param({"mode": "async"}, 2, {}, id="async-1-worker"),
        pytest.param({"mode": "stale", "staleness": 0}, 4, {}, id="stale-0"),
        pytest.param({"mode": "average", "average_every": 1}, 3, PLAIN_SGD, id="average-1-sgd"),
        pytest.param({"mode": "average", "average_every": 3}, 2, {}, id="average-1-worker"),
    ],
)
def test_where_a_mode_is_one_process(
    workers: Workers, options: dict[str, Any], size: int, proof: dict[str, Any]
) -> None:
    """Nothing stale, or nothing to average: the weights after 20 steps are those of one process."""
    plan = Proof(strategy=ps(**options), **proof)
    ours = trained(workers.run(train, plan, size=size, timeout=200))
    assert largest_difference(ours[0].weights, exact(plan).weights)[0] <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "stale", "staleness": 1, "num_servers": 2},
        {"mode": "async", "damping": True},
        {"mode": "average", "average_every": 3},
        {"mode": "average", "average_every": 3, "elastic": 0.4},
    ],
    ids=["stale", "async", "average", "elastic"],
)
def test_where_it_is_not(workers: Workers, tmp_path: Path, options: dict[str, Any]) -> None:
    """Another trajectory, that learns; its checkpoint is a whole one, from which one process goes on."""
    plan = Proof(strategy=ps(**options), microbatch_size=2, save_to=str(tmp_path))
    size = 2 + int(options.get("num_servers", 1))
    ours = trained(workers.run(train, plan, size=size, timeout=200))[0]
    theirs = exact(dataclasses.replace(plan, save_to=None))
    assert largest_difference(ours.weights, theirs.weights)[0] > 1e-6
    assert ours.sums["targets"] == theirs.sums["targets"]
    is_ahead = options["mode"] == "stale"
    assert math.isnan(ours.grad_norms[0]) == is_ahead  # of the first update, which was not made yet
    start = exact(dataclasses.replace(plan, save_to=None, steps=0)).sums["loss"]
    assert start - ours.sums["loss"] > 0.5 * (start - theirs.sums["loss"])
    on = exact(dataclasses.replace(plan, save_to=None, first_step=20, steps=21, load_from=str(tmp_path)))
    assert on.sums["loss"] == pytest.approx(ours.sums["loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("num_servers", [1, 2])
def test_worker_and_centre_move_towards_each_other(workers: Workers, num_servers: int) -> None:
    """Elastic averaging of one worker, by equations 2 and 3 of Zhang et al. 2015 (arXiv:1412.6651)."""
    plan = Proof(strategy=ps(mode="average", average_every=3, elastic=0.4, num_servers=num_servers))
    ours = trained(workers.run(train, plan, size=1 + num_servers, timeout=200))[0]
    replica = Replica(job_for(plan), device="cpu")
    weights = {name: weight.data for name, weight in named_weights(replica.module).items()}
    centre = {name: weight.clone() for name, weight in weights.items()}
    for step in range(plan.steps):
        replica.train_step(global_batch(plan, step), step)
        for name, weight in weights.items() if (step + 1) % 3 == 0 else ():
            moved = 0.4 * (weight - centre[name])
            weight -= moved
            centre[name] += moved
    assert largest_difference(ours.weights, centre)[0] <= 1e-9


STEPS = 5


def bytes_sent(world: World, options: dict[str, Any]) -> tuple[str, float]:
    """Of a worker in a step, or of a server in all of them, by the kernel's count."""
    from benchmarks.engines import batch, job
    from distrib.proof.sockets import SentBytes
    from distrib.strategies.parameter_server import hall

    strategy = ParameterServer(**options)
    strategy.setup(job(size=world.size, precision="fp32", width=128), world)
    counter, at_end = SentBytes(), list[int]()

    def steps() -> float:
        count = strategy.shard.count
        for step in range(STEPS):
            strategy.train_step([batch(index=world.rank, size=count)], step)
        sent = counter.since_last() or 0
        strategy.reduce({"all": torch.ones(())})  # weights have come everywhere before anybody leaves
        return sent / STEPS

    leave = hall.Hall.leave
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hall.Hall, "leave", lambda *a: (at_end.append(counter.since_last() or 0), leave(*a))[1])
        per_step = strategy.run(steps)
    strategy.close()
    return ("server", at_end[0] / STEPS) if per_step is None else ("worker", per_step)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "num_servers"), [(3, 1), (4, 2)])
def test_bytes_are_those_of_the_formula(workers: Workers, size: int, num_servers: int) -> None:
    """A worker sends the model once a step; a server sends its part once to each worker; at most 2 % more."""
    from benchmarks.engines import build_model

    model = 4 * sum(parameter.numel() for parameter in build_model(128).parameters())
    for role, sent in workers.run(bytes_sent, {"num_servers": num_servers}, size=size, timeout=200):
        expected = model if role == "worker" else (size - num_servers) * model / num_servers
        assert expected <= sent <= 1.02 * expected


def stranger(world: World) -> str:
    """Rank 1 knows another token."""
    from distrib.strategies.parameter_server.doors import Doors

    doors = Doors(dataclasses.replace(world, token=f"{world.rank}"), num_workers=1, limit=30.0)
    try:
        doors.open(1 - world.rank)
    except LaunchError as error:
        return str(error)
    return "let in"


@pytest.mark.slow
def test_a_session_shows_the_jobs_token(workers: Workers) -> None:
    """Who does not know it is refused on both sides, before anything else is sent."""
    answers = workers.run(stranger, size=2)
    assert "who says to be server rank 1 does not know this job's token" in answers[0]
    assert "who says to be worker rank 0 does not know this job's token" in answers[1]


def measured(world: World) -> dict[str, float] | None:
    """Three steps; the last worker asks first, and the first one when it has."""
    strategy = ParameterServer(bucket_mb=0.01)
    proof = Proof(strategy={}, steps=3)

    def body() -> dict[str, float]:
        for step in range(proof.steps):
            strategy.train_step(list(strategy.shard.take(global_batch(proof, step))), step)
        if world.rank == 0:
            strategy.reduce({"the other has asked": torch.ones(())})
            return dict(strategy.measures())
        numbers = dict(strategy.measures())
        strategy.reduce({"the other has asked": torch.ones(())})
        return numbers

    try:
        strategy.setup(job_for(proof), world)
        return strategy.run(body)
    finally:
        strategy.close()


@pytest.mark.slow
def test_a_servers_numbers_are_the_first_workers_to_take(workers: Workers) -> None:
    """They begin anew when they are taken, so that the others, whose numbers nobody logs, leave them be."""
    first, other, server = workers.run(measured, size=3)
    assert first["server_load"] > 0
    assert first["staleness/0"] == 2 * 3
    assert first["waited_seconds/worker_0"] > 0
    assert first["waited_seconds/worker_1"] > 0
    assert list(first)[:4] == ["staleness", "waited_seconds", "push_seconds", "pull_seconds"]
    assert other == {}
    assert server is None


def ahead(world: World) -> list[float] | None:
    """The first part has five updates more than the second, as where another worker's push came late."""
    strategy = ParameterServer(mode="async", num_servers=2)
    proof = Proof(strategy={}, steps=2)

    def body() -> list[float]:
        for step in range(proof.steps):
            strategy.train_step(list(strategy.shard.take(global_batch(proof, step))), step)
        working = strategy._working
        told = [link.session.ask(Op.FACTS).text for link in working.links]
        return [facts["staleness_max"] for facts in told]

    try:
        strategy.setup(job_for(proof), world)
        if world.rank == 1:
            assert strategy._server is not None
            strategy._server.hall.version = 5
        return strategy.run(body)
    finally:
        strategy.close()


@pytest.mark.slow
def test_staleness_is_counted_by_each_servers_own_updates(workers: Workers) -> None:
    """By the first's a push could be of weights yet to come, and a server ended at that: of 12 drills one."""
    staleness, *_ = workers.run(ahead, size=3)
    assert staleness == [5.0, 0.0]  # of the first step, whose weights no server had counted yet
