"""Packed gradients on their way to the servers: what they become, cost, and leave in a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import trained
from test_ddp_hooks import gradients_by_rank
from test_parameter_server import bytes_sent, exact, ps

from distrib.state import StateReader
from distrib.strategies.parameter_server.layout import in_forward_order, make_layout
from distrib.targets import build
from distrib.testing.proof import Proof, Trajectory, initial_weights, job_for, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TOPK = ps(compression="topk", topk_share=0.1)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(workers: Workers, proof: Proof, *, size: int, **changes: Any) -> list[Trajectory]:
    return trained(workers.run(train, dataclasses.replace(proof, **changes), size=size))


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("compression", ["bf16", "fp16"])
def test_halves_are_rounded_by_each_worker_once(workers: Workers, compression: str, num_servers: int) -> None:
    """The weights move by the sum, in fp64, of the two workers' gradients as torch rounds them."""
    proof = Proof(
        strategy=ps(compression=compression, num_servers=num_servers),
        momentum_sgd=True,
        momentum=0.0,
        max_grad_norm=None,
        lr=1.0,
        steps=1,
    )
    ours = run(workers, proof, size=2 + num_servers)[0]
    before, parts = initial_weights(proof), gradients_by_rank(proof, size=2)
    for name in parts[0]:
        rounded = [part[name].to(HALVES[compression]).double() for part in parts]
        torch.testing.assert_close(ours.weights[name], before[name] - sum(rounded), rtol=0, atol=1e-15)
    square = sum(sum(p[n].to(HALVES[compression]).double() for p in parts).square().sum() for n in parts[0])
    assert ours.grad_norms[0] == pytest.approx(math.sqrt(square), rel=1e-12)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_norm_is_of_what_arrives(workers: Workers, mode: str) -> None:
    """Clipping goes by the gradient that moves the weights, not by the one that was computed."""
    proof = Proof(
        strategy={**TOPK, "mode": mode},
        momentum_sgd=True,
        momentum=0.0,
        max_grad_norm=None,
        lr=1.0,
        steps=1,
    )
    ours, before = run(workers, proof, size=2)[0], initial_weights(proof)
    moved = sum(float((before[name] - ours.weights[name]).square().sum()) for name in before)
    assert ours.grad_norms[0] == pytest.approx(math.sqrt(moved), rel=1e-9)
    assert ours.grad_norms[0] < 0.999 * exact(proof).grad_norms[0]


def test_all_elements_give_the_one_process_trajectory(workers: Workers) -> None:
    """With a share of 1 nothing is left out, and 20 steps of AdamW are those of one process."""
    plan = Proof(strategy=ps(compression="topk", topk_share=1.0, num_servers=2))
    ours, theirs = run(workers, plan, size=4)[0], exact(plan)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-9, rel=0)
    assert largest_difference(ours.weights, theirs.weights)[0] <= 1e-9


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "stale", "num_servers": 2}, {"mode": "async"}],
    ids=["sync", "stale", "async"],
)
def test_a_tenth_of_the_elements_learns(workers: Workers, options: dict[str, Any]) -> None:
    """In every mode that pushes gradients: another trajectory, with most of what one process learns."""
    plan = Proof(strategy={**TOPK, **options}, microbatch_size=2, momentum_sgd=True, lr=0.3, steps=40)
    ours = run(workers, plan, size=2 + int(options.get("num_servers", 1)))[0]
    theirs = exact(plan)
    start = exact(dataclasses.replace(plan, steps=0)).sums["loss"]
    assert largest_difference(ours.weights, theirs.weights)[0] > 1e-6
    assert start - ours.sums["loss"] > 0.5 * (start - theirs.sums["loss"])


def test_a_resumed_run_goes_on_as_if_unbroken(workers: Workers, tmp_path: Path) -> None:
    """The checkpoint has every worker's errors; without them the same resume goes elsewhere."""
    proof = Proof(strategy=TOPK, steps=14)
    unbroken = run(workers, proof, size=3)[0]
    run(workers, proof, size=3, steps=7, save_to=str(tmp_path))
    ours = run(workers, proof, size=3, first_step=7, load_from=str(tmp_path))[0]
    assert ours.losses == pytest.approx(unbroken.losses[7:], abs=1e-12, rel=0)
    assert largest_difference(ours.weights, unbroken.weights)[0] <= 1e-12
    shutil.rmtree(tmp_path / "strategy")
    without = run(workers, proof, size=3, first_step=7, load_from=str(tmp_path))[0]
    assert largest_difference(without.weights, unbroken.weights)[0] > 1e-6


def dropped_of(world: World, proof: Proof) -> list[str] | None:
    """What a worker drops of the checkpoint it loads."""
    strategy = build(proof.strategy, key="strategy", plugins=())

    def body() -> list[str]:
        assert proof.load_from is not None
        reader = StateReader(Path(proof.load_from))
        strategy.load(reader)
        return reader.dropped()

    try:
        strategy.setup(job_for(proof), world)
        found: list[str] | None = strategy.run(body)
        return found
    finally:
        strategy.close()


def test_what_is_dropped_is_known(workers: Workers, tmp_path: Path) -> None:
    """Errors are taken by as many workers, on any number of servers, and named as dropped by others."""
    proof = Proof(strategy=TOPK, steps=3, save_to=str(tmp_path))
    run(workers, proof, size=3)

    def dropped(*, size: int, **options: Any) -> list[list[str]]:
        there = dataclasses.replace(proof, strategy={**TOPK, **options}, load_from=str(tmp_path))
        answers: list[list[str] | None] = workers.run(dropped_of, there, size=size)
        return [answer for answer in answers if answer is not None]

    assert dropped(size=3) == [[], []]
    assert dropped(size=4, num_servers=2, topk_share=0.5) == [[], []]
    assert dropped(size=4) == [["topk"]] * 3
    assert dropped(size=3, compression="none") == [["topk"]] * 2


@pytest.mark.parametrize("compression", ["bf16", "topk"])
def test_a_nan_is_over_with_its_step(workers: Workers, compression: str) -> None:
    """The step is skipped by all, and the next ones are not."""
    proof = Proof(strategy={**TOPK, "compression": compression}, steps=9, microbatch_size=2, nan_at=(5, 1))
    for rank in run(workers, proof, size=3):
        assert rank.updated == [step != 5 for step in range(9)]


@pytest.mark.parametrize(("size", "num_servers"), [(3, 1), (4, 2)])
@pytest.mark.parametrize(("compression", "share"), [("bf16", 0.0), ("topk", 0.02)])
def test_a_push_is_as_small_as_the_formula(
    workers: Workers, compression: str, share: float, size: int, num_servers: int
) -> None:
    """Two bytes an element, or eight for each that is sent; at most 2 % more."""
    from benchmarks.engines import build_model

    options = {"num_servers": num_servers, "compression": compression}
    options |= {"topk_share": share} if share else {}
    parameters, _ = in_forward_order(build_model(128))
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    layout = make_layout(sizes, num_servers=num_servers, bucket_numel=2**20)
    runs = [cut.stop - cut.start for bucket in layout.buckets for cut in bucket.cuts]
    expected = sum(8 * math.ceil(share * run) for run in runs) if share else 2 * sum(runs)
    for role, sent in workers.run(bytes_sent, options, size=size, timeout=200):
        if role == "worker":
            assert expected <= sent <= 1.02 * expected
