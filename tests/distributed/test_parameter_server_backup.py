"""Servers with a backup: a server is lost at any moment, and the run is the unbroken one."""

from __future__ import annotations

import dataclasses
import os
import random
from itertools import pairwise
from typing import Any

import pytest
from forked import Fault, JobPlan
from test_parameter_server_faults import (
    Outcome,
    assert_bounded,
    events,
    finished,
    last_words,
    replay,
    run_jobs,
)

from distrib.strategies.single import Single
from distrib.testing.proof import Proof, global_batch, job_for, saved_weights
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 20
OPTIONS: dict[str, Any] = {"server_backups": 1, "bucket_mb": 0.01, "silent_after": 4.0}
"""Where a death is not noticed at once, which was seen under load, the time limit is to notice it."""


def plan(*faults: Fault, size: int = 4, **options: Any) -> JobPlan:
    """Workers that are a little slow, so that a fault finds them at work."""
    return JobPlan(
        size=size,
        options={**OPTIONS, **options},
        proof={"steps": STEPS, "microbatch_size": 2},
        faults=list(faults),
        limit=90.0,
        delays=[0.02] * (size - 2 * options.get("num_servers", 1)),
    )


SERVER, BACKUP = 2, 3
QUICK = {
    "server killed": plan(Fault(rank=SERVER, step=7, delay=0.005)),
    "both in turn": plan(
        Fault(rank=SERVER, step=3, again_after=0.05), Fault(rank=BACKUP, step=14, delay=0.005)
    ),
    "async, two workers": plan(Fault(rank=SERVER, step=7, delay=0.005), mode="async"),
    "two parts, both servers killed": plan(
        Fault(rank=3, step=5, delay=0.005), Fault(rank=2, step=12, delay=0.005), size=6, num_servers=2
    ),
    "average": plan(mode="average", average_every=4),
    "average, server killed": plan(Fault(rank=SERVER, step=7, delay=0.005), mode="average", average_every=4),
}
LONG = {
    "backup killed": plan(Fault(rank=BACKUP, step=7, delay=0.005)),
    "async": plan(Fault(rank=1, step=7, delay=0.005), size=3, mode="async"),
    "top-k": plan(compression="topk", topk_share=0.3),
    "top-k, server killed": plan(Fault(rank=SERVER, step=7, delay=0.005), compression="topk", topk_share=0.3),
    "elastic": plan(size=3, mode="average", average_every=2, elastic=0.4),
    "elastic, server killed": plan(
        Fault(rank=1, step=7, delay=0.005), size=3, mode="average", average_every=2, elastic=0.4
    ),
    "server stopped": plan(Fault(rank=SERVER, step=7, signal="SIGSTOP", again_after=8.0), silent_after=2.0),
    "two parts, first stopped": plan(
        Fault(rank=2, step=7, signal="SIGSTOP", again_after=12.0), silent_after=2.0, size=6, num_servers=2
    ),
    "two parts, second stopped": plan(
        Fault(rank=3, step=7, signal="SIGSTOP", again_after=12.0), silent_after=2.0, size=6, num_servers=2
    ),
    "both at once": plan(Fault(rank=SERVER, step=7), Fault(rank=BACKUP, step=7)),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All of `QUICK`, run."""
    return dict(zip(QUICK, run_jobs(list(QUICK.values()), limit=280), strict=True))


@pytest.fixture(scope="module")
def more_outcomes() -> dict[str, Outcome]:
    """All of `LONG`, run."""
    return dict(zip(LONG, run_jobs(list(LONG.values()), limit=280), strict=True))


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], list[float]]:
    """One process's losses and final weights."""
    strategy, losses = Single(), []
    proof = Proof(strategy={}, **plan().proof)
    strategy.setup(job_for(proof), World())
    for step in range(proof.steps):
        batches = global_batch(proof, step)
        losses.append(strategy.train_step(batches, step).loss.item() / batches[0].step_targets)
    weights = saved_weights(strategy, World(), proof)
    strategy.close()
    return losses, [x for _, tensor in sorted(weights.items()) for x in tensor.view(-1).tolist()]


@pytest.mark.parametrize("name", ["server killed", "both in turn", "two parts, both servers killed"])
def test_the_run_is_the_unbroken_one(
    outcomes: dict[str, Outcome], alone: tuple[list[float], list[float]], name: str
) -> None:
    """Losses and final weights are those of one process: no update is lost, and none made twice."""
    assert_unbroken(outcomes[name], alone)
    assert_said(outcomes[name])


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    ["backup killed", "async", "server stopped", "two parts, first stopped", "two parts, second stopped"],
)
def test_so_it_is_with_other_faults(
    more_outcomes: dict[str, Outcome], alone: tuple[list[float], list[float]], name: str
) -> None:
    """Of a backup, with one worker in ``async``, of a server that only stops."""
    assert_unbroken(more_outcomes[name], alone)
    if name != "backup killed":
        assert_said(more_outcomes[name])


def assert_unbroken(outcome: Outcome, alone: tuple[list[float], list[float]]) -> None:
    """The losses and final weights of one process."""
    losses, weights = alone
    assert outcome["in_time"], last_words(outcome)
    assert finished(outcome, 0), last_words(outcome)
    assert [event["loss"] for event in events(outcome, 0, "end")] == pytest.approx(losses, abs=1e-9)
    assert events(outcome, 0, "done")[0]["weights"] == pytest.approx(weights, abs=1e-9)


def assert_said(outcome: Outcome) -> None:
    """Who took over, and that the worker turned to it."""
    assert any("serves in its place from update" in log for log in outcome["logs"][1:])
    assert "has taken over" in outcome["logs"][0]


def test_every_push_makes_one_update(outcomes: dict[str, Outcome]) -> None:
    """Also in ``async``, where a push that is sent again could make two."""
    outcome = outcomes["async, two workers"]
    assert finished(outcome, 0)
    assert finished(outcome, 1)
    assert events(outcome, BACKUP, "done")[0]["updates"] == 2 * STEPS


@pytest.mark.full
def test_a_stopped_server_serves_nobody_when_it_wakes_up(more_outcomes: dict[str, Outcome]) -> None:
    """It must win the next term first, and its backup has."""
    outcome = more_outcomes["server stopped"]
    assert events(outcome, SERVER, "failed")
    assert not finished(outcome, SERVER)
    assert events(outcome, BACKUP, "done")[0]["updates"] == STEPS


@pytest.mark.full
def test_workers_do_not_wait_for_a_backup_that_is_lost_too(more_outcomes: dict[str, Outcome]) -> None:
    """They end by themselves, and name the server."""
    outcome = more_outcomes["both at once"]
    assert outcome["in_time"], last_words(outcome)
    struck = outcome["faults"][-1]["at"]
    ends = [events(outcome, rank, "failed")[0] for rank in (0, 1)]
    assert all("lost server rank" in end["text"] for end in ends)
    assert max(end["at"] for end in ends) - struck < 20


def test_a_mean_of_parameters_is_not_lost(outcomes: dict[str, Outcome]) -> None:
    """Nor is the mean that a checkpoint is made of, whichever server the workers meet at."""
    assert_equal(outcomes["average, server killed"], outcomes["average"])


@pytest.mark.full
@pytest.mark.parametrize("name", ["top-k", "elastic"])
def test_a_push_sent_again_is_the_one_that_was_sent(more_outcomes: dict[str, Outcome], name: str) -> None:
    """Of a gradient of which a share is sent, the same share, and what was left out is not added twice;
    nor is the centre moved twice."""
    assert_equal(more_outcomes[f"{name}, server killed"], more_outcomes[name])


def assert_equal(killed: Outcome, unbroken: Outcome) -> None:
    """The losses and final weights of the unbroken run."""
    assert finished(unbroken, 0)
    assert finished(killed, 0), last_words(killed)
    assert_said(killed)
    losses = [[event["loss"] for event in events(outcome, 0, "end")] for outcome in (unbroken, killed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)
    weights = [events(outcome, 0, "done")[0]["weights"] for outcome in (unbroken, killed)]
    assert weights[1] == pytest.approx(weights[0], abs=1e-9)


def drill(seed: int, *, num_servers: int = 1) -> JobPlan:
    """A server or backup killed at a random moment, in any mode."""
    chance = random.Random(seed)
    average = {"mode": "average", "average_every": 2}
    options: dict[str, Any] = chance.choice(
        [
            {},
            {"mode": "async"},
            {"mode": "stale", "staleness": 1},
            {"mode": "stale", "staleness": 3},
            average,
            {**average, "elastic": 0.4},
        ]
    )
    servers, backups = [range(2 + n * num_servers, 2 + (n + 1) * num_servers) for n in range(2)]
    kill = Fault(
        rank=chance.choice([*servers, *servers, *backups]),
        step=chance.randrange(1, STEPS),
        delay=chance.uniform(0.001, 0.04),
    )
    made = plan(kill, size=2 + 2 * num_servers, num_servers=num_servers, **options)
    delays = [chance.choice([0.0, 0.003, 0.02]) for _ in range(2)]
    return dataclasses.replace(made, delays=delays, evaluates=chance.random() < 0.5)


def updates_of(options: dict[str, Any]) -> int:
    """What servers have counted after `STEPS` steps of two workers."""
    if options.get("mode") == "average":  # the first exchange is in the second step, which is number 1
        return 1 + (2 if "elastic" in options else 1) * STEPS
    return 2 * STEPS if options.get("mode") == "async" else STEPS


def assert_nothing_lost(made: JobPlan, outcome: Outcome, losses: list[float]) -> None:
    """Every push made its one update; where that is the one process's run, so are the losses."""
    mode = made.options.get("mode", "sync")
    assert outcome["in_time"], last_words(outcome)
    for rank in range(2):
        assert finished(outcome, rank), last_words(outcome)
    updates = [event["updates"] for rank in range(2, made.size) for event in events(outcome, rank, "done")]
    assert len(updates) >= made.options["num_servers"]
    assert set(updates) == {updates_of(made.options)}
    if mode == "sync":
        assert [event["loss"] for event in events(outcome, 0, "end")] == pytest.approx(losses, abs=1e-9)
    if mode == "stale":
        assert_bounded(made, outcome)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_server_killed_at_random_moments(alone: tuple[list[float], list[float]], num_servers: int) -> None:
    """40 kills: no update is lost and none is made twice, where servers agree on a step neither."""
    plans = [drill(seed, num_servers=num_servers) for seed in range(40)]
    for made, outcome in zip(plans, run_jobs(plans, limit=850), strict=True):
        assert_nothing_lost(made, outcome, alone[0])


def kill_all_in_turn(seed: int) -> JobPlan:
    """Workers and whoever serves are killed by turns at random moments, and come back."""
    chance, num_servers, steps = random.Random(seed), 1 + seed % 2, 120
    first = 3
    part = chance.randrange(num_servers)
    serving = [first + part, first + num_servers + part]  # each is the other's backup, after the first kill
    faults = [
        Fault(
            rank=chance.choice([1, 2]) if turn % 2 == 0 else serving[turn // 2 % 2],
            step=step,
            delay=chance.uniform(0.001, 0.04),
            again_after=chance.uniform(0.05, 0.2),
        )
        for turn, step in enumerate(range(5, steps - 30, 12))
    ]
    return JobPlan(
        size=first + 2 * num_servers,
        options={**OPTIONS, "num_servers": num_servers, "min_workers": 1, "balance": "measured"},
        proof={"steps": steps, "microbatch_size": 2},
        faults=faults,
        limit=150.0,
        delays=[0.03, 0.02, 0.02],
    )


@pytest.mark.full
@pytest.mark.timeout(900)
def test_workers_and_servers_killed_by_turns() -> None:
    """Steps are run again by the workers who are there, whoever serves: every loss is one process's."""
    plans = [kill_all_in_turn(seed) for seed in range(8)]
    proof = Proof(strategy={}, **plans[0].proof)
    losses = replay(proof, [range(5)] * proof.steps)
    outcomes = run_jobs(plans, limit=850)
    assert sum(len(events(outcome, 3, "redone")) for outcome in outcomes) > len(plans)
    for made, outcome in zip(plans, outcomes, strict=True):
        assert outcome["in_time"], last_words(outcome)
        assert finished(outcome, 0), last_words(outcome)
        assert len(outcome["faults"]) >= len(made.faults) - 3
        assert [event["loss"] for event in events(outcome, 0, "end")] == pytest.approx(losses, abs=1e-9)


CUT = {
    "server": dataclasses.replace(
        plan(Fault(rank=SERVER, step=7, signal="CUT", again_after=9.0), silent_after=2.0), hosts=True
    ),
    "worker": dataclasses.replace(
        plan(Fault(rank=1, step=7, signal="CUT", again_after=3.5), silent_after=2.0, mode="async"),
        hosts=True,
        delays=[0.5, 0.02],
    ),
}
"""Of a host whose cable is pulled and put back; the other worker is so slow that it is still at work then."""


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_who_was_cut_off_writes_nothing_more(alone: tuple[list[float], list[float]]) -> None:
    """A server's backup goes on, a worker is given up, within the time limit; healed, neither has a part."""
    server, worker = run_jobs(list(CUT.values()), limit=280)
    assert finished(server, 0), last_words(server)
    assert [event["loss"] for event in events(server, 0, "end")] == pytest.approx(alone[0], abs=1e-9)
    assert events(server, SERVER, "failed"), last_words(server)
    assert events(server, BACKUP, "done")[0]["updates"] == STEPS

    assert finished(worker, 0), last_words(worker)
    assert events(worker, 1, "failed"), last_words(worker)
    assert "worker rank 1 has been silent for 2 s" in worker["logs"][SERVER]
    made = events(worker, SERVER, "done")[0]["updates"] - STEPS  # of the pushes of the one cut off
    assert len(events(worker, 1, "end")) <= made <= len(events(worker, 1, "end")) + 1
    waited = [b["at"] - a["at"] for a, b in pairwise(events(server, 0, "begin"))]
    assert max(waited) < 3 * 2.0  # its own patience, twice the server's, and a step
