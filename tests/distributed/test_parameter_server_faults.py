"""The parameter server when ranks die, stop or come back; and that a worker is never too far ahead."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import Fault, JobPlan

from distrib.core import IGNORED
from distrib.strategies.single import Single
from distrib.testing.proof import Proof, examples, global_batch, job_for
from distrib.world import World

Outcome = dict[str, Any]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run_jobs(plans: list[JobPlan], *, limit: float) -> list[Outcome]:
    """Runs jobs one after another, in forks of one fresh process."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "forked.py")],
        input=json.dumps([dataclasses.asdict(plan) for plan in plans]),
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def events(outcome: Outcome, rank: int, name: str) -> list[dict[str, Any]]:
    return [event for event in outcome["ranks"][rank] if event["event"] == name]


def finished(outcome: Outcome, rank: int) -> bool:
    return bool(events(outcome, rank, "done"))


def last_words(outcome: Outcome) -> str:
    """Of every rank, the last thing it noted and all it printed; and who was killed."""
    lines = [f"faults: {outcome['faults']}"]
    for rank, (noted, log) in enumerate(zip(outcome["ranks"], outcome["logs"], strict=True)):
        lines.append(f"rank {rank}: {noted[-1:]}\n{log}")
    return "\n".join(lines)


PLANS = {
    "sync ends": JobPlan(size=3, options={}, proof={"steps": 6}, faults=[Fault(rank=1, step=3)]),
    "sync goes on": JobPlan(
        size=3, options={"min_workers": 1}, proof={"steps": 8}, faults=[Fault(rank=1, step=3)]
    ),
    "too few": JobPlan(
        size=3,
        options={"mode": "async", "min_workers": 2},
        proof={"steps": 9},
        faults=[Fault(rank=1, step=3)],
    ),
    "server killed": JobPlan(
        size=4,
        options={"mode": "stale", "num_servers": 2},
        proof={"steps": 400},
        faults=[Fault(rank=3, step=3)],
    ),
    "async joined": JobPlan(
        size=3,
        options={"mode": "async"},
        proof={"steps": 20},
        hold=10,
        faults=[Fault(rank=1, step=3, again_after=0.1)],
    ),
    "sync joined": JobPlan(
        size=4,
        options={"min_workers": 1, "num_servers": 2},
        proof={"steps": 20},
        hold=10,
        faults=[Fault(rank=1, step=3, again_after=0.1)],
    ),
    "shared out anew": JobPlan(
        size=3,
        options={"min_workers": 1, "balance": "measured"},
        proof={"steps": 20, "microbatch_size": 2},
        hold=10,
        faults=[Fault(rank=1, step=3, again_after=0.1)],
    ),
    "stale stopped": JobPlan(
        size=3,
        options={"mode": "stale", "staleness": 1, "silent_after": 3.0},
        proof={"steps": 8},
        # Wakes up after the server's 3 s, and before it would itself give the server up: after twice that.
        faults=[Fault(rank=1, step=3, signal="SIGSTOP", again_after=4.5)],
    ),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All of `PLANS`, run."""
    return dict(zip(PLANS, run_jobs(list(PLANS.values()), limit=280), strict=True))


def test_sync_ends_at_once_when_a_worker_is_killed(outcomes: dict[str, Outcome]) -> None:
    """Without ``min_workers`` the server names the lost worker, and the others end with it."""
    outcome = outcomes["sync ends"]
    assert outcome["in_time"], last_words(outcome)
    (server,) = events(outcome, 2, "failed")
    assert server["kind"] == "PeerLostError"
    assert server["text"].startswith("lost worker rank 1:")
    assert "lost server rank 2" in events(outcome, 0, "failed")[0]["text"]


def test_sync_goes_on_with_the_right_divisor(outcomes: dict[str, Outcome]) -> None:
    """From the lost step on, the trajectory is that of one process that has only the other shard's data."""
    outcome, plan = outcomes["sync goes on"], PLANS["sync goes on"]
    assert outcome["in_time"], last_words(outcome)
    ours = [event["loss"] for event in events(outcome, 0, "end")]
    assert ours == pytest.approx(alone(Proof(strategy={}, **plan.proof), without_shard=1, since=3), abs=1e-9)


def test_the_others_run_a_lost_workers_microbatches(outcomes: dict[str, Outcome]) -> None:
    """From the step on in which it is lost, which is run again; it has a share again later, and every loss
    is one process's."""
    outcome, plan = outcomes["shared out anew"], PLANS["shared out anew"]
    assert outcome["in_time"], last_words(outcome)
    proof = Proof(strategy={}, **plan.proof)
    theirs = replay(proof, [range(5)] * proof.steps)
    assert [event["loss"] for event in events(outcome, 0, "end")] == pytest.approx(theirs, abs=1e-9)
    assert [event["step"] for event in events(outcome, 2, "redone")] == [3]
    assert [len(e["owned"]) for e in events(outcome, 0, "begin") if e["step"] == 3] == [3, 5]
    zero, one = ({e["step"]: len(e["owned"]) for e in events(outcome, rank, "begin")} for rank in (0, 1))
    del one[3]  # in which it was killed
    assert [zero[step] + one.get(step, 0) for step in range(proof.steps)] == [5] * proof.steps
    back = min(step for step in one if step > 3)
    assert one[back] == 0
    assert min(one[step] for step in range(back + 1, proof.steps)) >= 1


def alone(proof: Proof, *, without_shard: int, since: int) -> list[float]:
    """One process's losses, where one of two shards is missing from a step on."""
    count = len(global_batch(proof, 0))
    rest = [index for index in range(count) if index % 2 != without_shard]
    return replay(proof, [range(count) if step < since else rest for step in range(proof.steps)])


def replay(proof: Proof, used: Sequence[Collection[int]]) -> list[float]:
    """One process's losses that has these microbatches of each step's, and no others."""
    strategy, losses = Single(), []
    strategy.setup(job_for(proof), World())
    for step, indices in enumerate(used):
        batches = [batch for batch in global_batch(proof, step) if batch.index in indices]
        targets = sum(int((batch.tensors["labels"] != IGNORED).sum()) for batch in batches)
        batches = [dataclasses.replace(batch, step_targets=targets) for batch in batches]
        losses.append(strategy.train_step(batches, step).loss.item() / targets)
    strategy.close()
    return losses


def kills(seed: int, *, steps: int) -> JobPlan:
    """Two of three workers are killed again and again at random moments, and come back."""
    chance = random.Random(seed)
    faults = [
        Fault(
            rank=chance.choice([1, 2]),
            step=step,
            delay=chance.uniform(0.001, 0.04),
            again_after=chance.uniform(0.05, 0.5),
        )
        for step in range(5, steps - 40, 8)  # nobody comes back to a job that has ended
    ]
    num_servers = chance.choice([1, 2])
    return JobPlan(
        size=3 + num_servers,
        options={
            "min_workers": 1,
            "balance": ["none", "measured"][seed % 2],
            "num_servers": num_servers,
            "silent_after": 6.0,
        },
        proof={"steps": steps, "microbatch_size": 2},
        delays=[0.02, 0.01, 0.01],
        faults=faults,
    )


@pytest.mark.parametrize(
    ("seeds", "steps"), [([1], 80), pytest.param(range(2, 12), 200, marks=pytest.mark.full)]
)
@pytest.mark.timeout(900)
def test_a_run_of_many_kills_is_that_of_the_examples_it_used(seeds: Sequence[int], steps: int) -> None:
    """Every loss to 1e-9 one process's that has the same microbatches; balanced, it has all of them."""
    plans = [kills(seed, steps=steps) for seed in seeds]
    for plan, outcome in zip(plans, run_jobs(plans, limit=880), strict=True):
        assert outcome["in_time"], last_words(outcome)
        assert len(outcome["faults"]) >= steps / 40, "hardly anybody was killed"
        proof = Proof(strategy={}, **plan.proof)
        owned = {
            (rank, event["life"], event["step"]): event["owned"]
            for rank in range(plan.num_workers)
            for event in events(outcome, rank, "begin")
        }
        agreed = events(outcome, plan.num_workers, "agreed")
        assert [event["step"] for event in agreed] == list(range(proof.steps))
        used = [[i for rank, life in e["senders"] for i in owned[rank, life, e["step"]]] for e in agreed]
        assert [event["loss"] for event in events(outcome, 0, "end")] == pytest.approx(
            replay(proof, used), abs=1e-9
        )
        count = len(global_batch(proof, 0))
        lacking = [step for step, indices in enumerate(used) if sorted(indices) != list(range(count))]
        if plan.options["balance"] == "measured":
            assert not lacking
            assert events(outcome, plan.num_workers, "redone"), "no kill found a step under way"
        else:
            assert lacking, "no example was ever missing"


def test_fewer_than_min_workers_end_the_job(outcomes: dict[str, Outcome]) -> None:
    """The server says how many are left and whom it has lost."""
    (server,) = events(outcomes["too few"], 2, "failed")
    assert "1 workers are left (strategy.min_workers=2): lost worker rank 1" in server["text"]


def test_a_killed_server_is_noticed(outcomes: dict[str, Outcome]) -> None:
    """Workers and the other server end within a moment, and it is named (seen: 0.08 s)."""
    outcome = outcomes["server killed"]
    struck = outcome["faults"][0]["at"]
    ends = [events(outcome, rank, "failed")[0] for rank in (0, 1, 2)]
    assert {end["kind"] for end in ends} == {"PeerLostError"}
    assert any("lost server rank 3" in end["text"] for end in ends)
    assert max(end["at"] for end in ends) - struck < 15


@pytest.mark.parametrize("name", ["async joined", "sync joined"])
def test_a_worker_comes_back(outcomes: dict[str, Outcome], name: str) -> None:
    """It begins where the job stands, is counted again, and all end together, everything evaluated."""
    outcome = outcomes[name]
    assert outcome["in_time"], last_words(outcome)
    assert finished(outcome, 0), last_words(outcome)
    assert finished(outcome, 1), last_words(outcome)
    first, joined = (event["step"] for event in events(outcome, 1, "first"))
    assert first == 0
    assert 3 <= joined <= 10
    begun = [event["step"] for event in events(outcome, 1, "begin")]
    assert begun == [*range(4), *range(joined, 20)]
    zero, one = (events(outcome, rank, "evaluated")[0] for rank in (0, 1))
    assert zero["loss"] == one["loss"]
    assert zero["targets"] == sum(len(sequence) - 1 for sequence in examples())


def test_a_stopped_worker_is_given_up_by_name(outcomes: dict[str, Outcome]) -> None:
    """After the time limit the others go on; when it wakes up it is let in nowhere."""
    outcome = outcomes["stale stopped"]
    assert outcome["in_time"], last_words(outcome)
    assert finished(outcome, 0)
    assert "worker rank 1 has been silent for 3 s" in outcome["logs"][2]
    (failed,) = events(outcome, 1, "failed")
    assert failed["kind"] == "PeerLostError"
    assert len(events(outcome, 1, "end")) == 3


def drill(seed: int) -> JobPlan:
    """Workers of different and random speed, of which one may be killed at a random moment."""
    chance = random.Random(seed)
    size, staleness = chance.choice([(3, 0), (3, 1), (4, 1), (4, 2), (4, 3)])
    delays = [chance.choice([0.0, 0.003, 0.01]) for _ in range(size - 1)]
    kill = Fault(
        rank=chance.randrange(1, size - 1), step=chance.randrange(12), delay=chance.uniform(0.001, 0.03)
    )
    return JobPlan(
        size=size,
        options={"mode": "stale", "staleness": staleness, "bucket_mb": 0.02, "silent_after": 6.0},
        proof={"steps": 15, "microbatch_size": 2},
        delays=delays,
        faults=[kill] if chance.random() < 0.7 else [],
    )


def assert_bounded(plan: JobPlan, outcome: Outcome) -> int:
    """Whoever began step t had weights with all updates before step t - staleness, and every living worker
    had done that many steps; returns how many steps a worker had done more than another, at most."""
    staleness, workers = plan.options["staleness"], range(plan.num_workers)
    assert outcome["in_time"], last_words(outcome)
    died = {fault["rank"]: fault["at"] for fault in outcome["faults"]}
    begun = {
        rank: {event["step"]: event["at"] for event in events(outcome, rank, "begin")} for rank in workers
    }
    lead = 0
    for rank in workers:
        assert rank in died or finished(outcome, rank), last_words(outcome)
        for event in events(outcome, rank, "begin"):
            assert event["version"] >= event["step"] - staleness
            for other in workers:
                if event["at"] > died.get(other, float("inf")) - 0.05:
                    continue  # it may have died meanwhile, and then it does not count
                # Its last begun step may be done but for the answer: that counts as done.
                done = sum(at <= event["at"] for at in begun[other].values())
                lead = max(lead, event["step"] - done)
                assert event["step"] - done <= staleness, f"rank {rank} against {other}"
    return lead


def test_staleness_is_bounded() -> None:
    """Random delays and kills: a worker reads no weights older than its bound, and the others finish."""
    plans = [drill(seed) for seed in range(5)]
    outcomes = run_jobs(plans, limit=280)
    leads = [assert_bounded(plan, outcome) for plan, outcome in zip(plans, outcomes, strict=True)]
    assert max(leads) > 0, "nobody was ever ahead: the drill tried nothing"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_staleness_is_bounded_in_200_runs() -> None:
    """The same, 200 times."""
    plans = [drill(seed) for seed in range(200)]
    outcomes = run_jobs(plans, limit=1700)
    leads = [assert_bounded(plan, outcome) for plan, outcome in zip(plans, outcomes, strict=True)]
    assert max(leads) > 1
