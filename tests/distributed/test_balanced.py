"""``balance=measured``: a slow rank gets fewer microbatches, and the result is one process's all the same."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from distrib.config import Target
from distrib.parallel import balance
from distrib.strategies.parameter_server import sharing, spent
from distrib.testing import proof as proofs
from distrib.testing.proof import Proof, Trajectory, global_batch, job_for, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLOW_RANK, DELAY, CLOCK = 1, 0.005, 100
"""Seconds that each microbatch takes longer there. On a busy machine all take longer, at times by more, so
the stopwatch of that rank also runs so many times too fast."""
STEPS = 12
WINDOW, AHEAD = 3, 2
"""A window is measured after 3 steps, known after 4 at the latest and counts from the seventh on."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A strategy that balances, and where it does."""

    strategy: Target
    constants: ModuleType
    """Has the length of a window."""
    stopwatch: ModuleType
    num_servers: int = 0


SERVED = {"_target_": "distrib.strategies.parameter_server.ParameterServer", "balance": "measured"}
CASES = {
    "ddp": Case(
        strategy={"_target_": "distrib.strategies.ddp.DDP", "balance": "measured"},
        constants=balance,
        stopwatch=balance,
    ),
    "ps": Case(strategy=SERVED, constants=sharing, stopwatch=spent, num_servers=1),
    "ps of two servers": Case(
        strategy={**SERVED, "num_servers": 2}, constants=sharing, stopwatch=spent, num_servers=2
    ),
}


def train_delayed(world: World, proof: Proof, name: str) -> tuple[Trajectory | None, list[int]]:
    """Trains with a rank that takes its time; also how many microbatches this rank ran in each step."""
    ran: list[int] = []
    is_slow = world.rank == SLOW_RANK

    def delayed(job: Any) -> Any:
        def loss(model: nn.Module, tensors: Any) -> Tensor:
            ran[-1] += 1
            time.sleep(DELAY if is_slow else 0.0)
            return job.loss(model, tensors)

        return dataclasses.replace(job, loss=loss, prefetch=AHEAD)

    def counted(proof: Proof, step: int) -> Any:
        ran.append(0)
        return global_batch(proof, step)

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() * (CLOCK if is_slow else 1))
    case = CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "job_for", lambda proof: delayed(job_for(proof)))
        patch.setattr(proofs, "global_batch", counted)
        patch.setattr(case.stopwatch, "time", clock)
        patch.setattr(case.constants, "EVERY", WINDOW)
        return train(world, proof), ran


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ddp", 2),
        ("ps", 2),
        pytest.param("ddp", 3, marks=pytest.mark.full),
        pytest.param("ps of two servers", 2, marks=pytest.mark.full),
        pytest.param("ps", 3, marks=pytest.mark.full),
    ],
)
def test_a_slow_rank_gets_fewer_and_nothing_changes(workers: Workers, name: str, size: int) -> None:
    """float64 to 1e-9 with dropout and clipping; each microbatch runs once, the slow rank's share shrinks."""
    proof = Proof(strategy=CASES[name].strategy, microbatch_size=1, steps=STEPS)
    servers = CASES[name].num_servers
    answers = workers.run(train_delayed, proof, name, size=size + servers, timeout=240.0)[:size]
    theirs = train(
        World(), dataclasses.replace(proof, strategy={"_target_": "distrib.strategies.single.Single"})
    )
    assert theirs is not None
    for ours, _ in answers:
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-9, rel=0)
        assert ours.grad_norms == pytest.approx(theirs.grad_norms, abs=1e-8, rel=0)
        assert ours.sums["right"] == theirs.sums["right"]
    assert largest_difference(answers[0][0].weights, theirs.weights)[0] <= 1e-9
    shares = [ran for _, ran in answers]
    assert [sum(step) for step in zip(*shares, strict=True)] == [proof.global_batch_size] * STEPS
    assert shares[SLOW_RANK][0] == len(range(SLOW_RANK, proof.global_batch_size, size))
    assert shares[SLOW_RANK][-1] < shares[SLOW_RANK][0]
