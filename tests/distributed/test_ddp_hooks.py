"""Gradient compression under DDP: how far it leads off, and that a checkpoint goes on with it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distrib.errors import ConfigError
from distrib.parallel.accumulate import accumulate
from distrib.state import StateReader
from distrib.strategies.ddp import DDP
from distrib.targets import build
from distrib.testing.proof import (
    Proof,
    Trajectory,
    global_batch,
    initial_weights,
    job_for,
    largest_difference,
    train,
)
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

START = 3
BITS = {"bf16": 8, "fp16": 11}
"""Significant bits of a type."""
SMALLEST = {"bf16": 0.0, "fp16": 2.0**-24}
"""The spacing of a type's smallest numbers: what it adds to the relative error (bf16's is 1e-40)."""


def ddp(compression: str, **options: Any) -> dict[str, Any]:
    return {"_target_": "distrib.strategies.ddp.DDP", "compression": compression, **options}


# Buckets of 10 kB, so that there are several, and DDP arranges them anew after the first step.
POWERSGD = ddp("powersgd", powersgd_rank=1, powersgd_start=START, bucket_mb=0.01)


def gradients_by_rank(proof: Proof, *, size: int) -> list[dict[str, Tensor]]:
    """What each of ``size`` ranks adds to the gradient of step 0."""
    job, found = job_for(proof), []
    for rank in range(size):
        model = job.build_model()
        accumulate(model, global_batch(proof, 0)[rank::size], job=job, step=0, device=torch.device("cpu"))
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("compression", ["bf16", "fp16"])
def test_half_precision_rounds_as_often_as_it_says(workers: Workers, compression: str, size: int) -> None:
    """Each element is off by at most N + 1 roundings of the ranks' absolute values.

    One when a rank casts, one when it divides by N, and one in each of N - 1 additions, of a partial
    sum that is no larger than the sum of absolute values: ((1 + u)^(N + 1) - 1) times it, u = 2^-bits.
    """
    proof = Proof(
        strategy=ddp(compression), microbatch_size=2, momentum_sgd=True, max_grad_norm=None, lr=1.0, steps=1
    )
    ours = workers.run(train, proof, size=size)
    assert len({rank.grad_norms[0] for rank in ours}) == 1
    before, parts = initial_weights(proof), gradients_by_rank(proof, size=size)
    unit = (1 + 2.0 ** -BITS[compression]) ** (size + 1) - 1
    relative = 0.0
    for name in parts[0]:
        arrived = before[name] - ours[0].weights[name]
        exact = sum(part[name] for part in parts)
        absolute = sum(part[name].abs() for part in parts)
        error = (arrived - exact).abs()
        assert (error <= unit * absolute + (size + 1) * SMALLEST[compression] + 1e-12).all(), name
        relative = max(relative, (error / absolute.clamp(min=1e-6)).max().item())
    assert relative > 2.0 ** -(BITS[compression] + 3), "nothing was compressed"


def test_powersgd_starts_with_whole_gradients(workers: Workers) -> None:
    """Until ``powersgd_start`` the trajectory is that of one process; then it leaves it."""
    proof = Proof(strategy=POWERSGD, steps=START + 3)
    exact = train(
        World(), dataclasses.replace(proof, strategy={"_target_": "distrib.strategies.single.Single"})
    )
    ours = workers.run(train, proof, size=2)[0]
    assert ours.losses[: START + 1] == pytest.approx(exact.losses[: START + 1], abs=1e-9)
    assert abs(ours.grad_norms[START] - exact.grad_norms[START]) > 1e-6


def mean_of_rank_gradients(world: World, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ten random gradients a rank: the sums of the means, of what arrived, and the mean error left."""
    import torch.distributed as dist

    from distrib.parallel.compression import PowerSGD
    from distrib.rendezvous import process_group

    process_group(world)
    powersgd = PowerSGD(torch.nn.Linear(32, 24, dtype=torch.float64), rank=2, start=0)
    draw = torch.Generator().manual_seed(seed + world.rank)
    exact = torch.zeros(24, 32, dtype=torch.float64)
    arrived = torch.zeros_like(exact)
    for _ in range(10):
        gradient = torch.randn(24, 32, generator=draw, dtype=torch.float64)
        exact += gradient
        powersgd.compress({"weight": gradient}, [])
        arrived += gradient
    left = powersgd.errors["weight"].clone()
    dist.all_reduce(exact)
    dist.all_reduce(left)
    return exact / world.size, arrived, left / world.size


def test_powersgd_loses_nothing_for_good(workers: Workers) -> None:
    """On three ranks, all that arrived and the mean of the errors left is the mean of all gradients."""
    answers = workers.run(mean_of_rank_gradients, 5, size=3)
    for exact, arrived, left in answers:
        assert torch.equal(arrived, answers[0][1])
        assert left.norm() > 0.1 * exact.norm()
        torch.testing.assert_close(arrived + left, exact, rtol=0, atol=1e-12)


def resumed(workers: Workers, proof: Proof, folder: Path, *, size: int) -> Trajectory:
    answer: Trajectory = workers.run(
        train, dataclasses.replace(proof, first_step=7, load_from=str(folder)), size=size
    )[0]
    return answer


@pytest.mark.parametrize("split", [7, START])
def test_powersgd_resumes_as_if_unbroken(workers: Workers, tmp_path: Path, split: int) -> None:
    """A checkpoint holds every rank's error feedback: going on from it equals not having stopped."""
    proof = Proof(strategy=POWERSGD, steps=14)
    unbroken = workers.run(train, proof, size=3)[0]
    workers.run(train, dataclasses.replace(proof, steps=split, save_to=str(tmp_path)), size=3)
    tail = dataclasses.replace(proof, first_step=split, load_from=str(tmp_path))
    ours = workers.run(train, tail, size=3)[0]
    assert ours.losses == pytest.approx(unbroken.losses[split:], abs=1e-12, rel=0)
    assert largest_difference(ours.weights, unbroken.weights)[0] <= 1e-12


def test_powersgd_state_matters(workers: Workers, tmp_path: Path) -> None:
    """Without the saved error feedback the same resume goes elsewhere: the test above can fail."""
    proof = Proof(strategy=POWERSGD, steps=14)
    unbroken = workers.run(train, proof, size=3)[0]
    workers.run(train, dataclasses.replace(proof, steps=7, save_to=str(tmp_path)), size=3)
    shutil.rmtree(tmp_path / "strategy")
    ours = resumed(workers, proof, tmp_path, size=3)
    assert largest_difference(ours.weights, unbroken.weights)[0] > 1e-6


def loaded(world: World, proof: Proof) -> list[str]:
    """What a strategy drops of the checkpoint it loads."""
    strategy = build(proof.strategy, key="strategy", plugins=())
    strategy.setup(job_for(proof), world)
    try:
        assert proof.load_from is not None
        reader = StateReader(Path(proof.load_from))
        strategy.load(reader)
        return reader.dropped()
    finally:
        strategy.close()


def test_what_is_dropped_is_known(workers: Workers, tmp_path: Path) -> None:
    """Error feedback is taken by as many processes with as large a rank, and named as dropped by others."""
    proof = Proof(strategy=POWERSGD, steps=7, save_to=str(tmp_path))
    workers.run(train, proof, size=2)
    from_there = dataclasses.replace(proof, load_from=str(tmp_path))
    assert workers.run(loaded, from_there, size=2) == [[], []]
    assert workers.run(loaded, from_there, size=3) == [["powersgd"]] * 3
    for other in (ddp("none"), {**POWERSGD, "powersgd_rank": 2}):
        assert workers.run(loaded, dataclasses.replace(from_there, strategy=other), size=2)[0] == ["powersgd"]


def test_nan_does_not_stay_in_the_errors(workers: Workers) -> None:
    """After a skipped step the errors begin anew, instead of making every later gradient NaN."""
    proof = Proof(strategy=POWERSGD, steps=9, microbatch_size=2, nan_at=(5, 1))
    for rank in workers.run(train, proof, size=2):
        assert rank.updated == [step != 5 for step in range(9)]


def test_refusals() -> None:
    """What PowerSGD cannot do is refused by its key, before a process group is made."""
    proof = Proof(strategy=POWERSGD, precision="fp16")
    with pytest.raises(ConfigError, match=r"strategy\.compression=powersgd"):
        DDP(compression="powersgd").setup(job_for(proof), World())
    with pytest.raises(ConfigError, match=r"strategy\.powersgd_rank=0"):
        DDP(powersgd_rank=0).check(num_processes=2)
