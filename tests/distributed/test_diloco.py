"""DiLoCo: what it is equal to, what it sends, and that a checkpoint goes on with all of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Case, build_model, job, strategy_of
from benchmarks.engines import train as run_steps
from distrib.core import IGNORED
from distrib.parallel.accumulate import accumulate
from distrib.parallel.quantize import BLOCK, LEVELS, Quantize
from distrib.proof.sockets import SentBytes
from distrib.state import StateReader
from distrib.targets import build
from distrib.testing.proof import (
    Proof,
    Trajectory,
    global_batch,
    job_for,
    largest_difference,
    train,
)
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LONG = 240.0
"""Seconds that a busy machine may take for what takes an idle one two."""

SINGLE = {"_target_": "distrib.strategies.single.Single"}
DDP = {"_target_": "distrib.strategies.ddp.DDP"}
FSDP = {"_target_": "distrib.strategies.fsdp.FSDP"}
PLAIN_SGD: dict[str, Any] = {"momentum_sgd": True, "momentum": 0.0, "max_grad_norm": None, "lr": 0.1}


def diloco(**options: Any) -> dict[str, Any]:
    return {"_target_": "distrib.strategies.diloco.DiLoCo", "inner": SINGLE, **options}


def local_sgd(sync_every: int, **options: Any) -> dict[str, Any]:
    return diloco(sync_every=sync_every, outer_lr=1.0, outer_momentum=0.0, **options)


def trained(workers: Workers, proof: Proof, *, size: int) -> Trajectory:
    """Rank 0's trajectory; the losses and evaluations of all ranks are the same."""
    ranks: list[Trajectory] = workers.run(train, proof, size=size, timeout=LONG)
    assert all(rank.losses == ranks[0].losses and rank.sums == ranks[0].sums for rank in ranks)
    return ranks[0]


def assert_equal(ours: Trajectory, theirs: Trajectory, *, bound: float, first: int = 0) -> None:
    assert ours.losses == pytest.approx(theirs.losses[first:], abs=bound, rel=0)
    assert largest_difference(ours.weights, theirs.weights)[0] <= bound
    assert ours.sums == pytest.approx(theirs.sums, abs=1e3 * bound)


@pytest.mark.parametrize(
    ("size", "inner", "replica_size"),
    [
        pytest.param(1, SINGLE, 1, id="1", marks=pytest.mark.full),
        pytest.param(2, SINGLE, 1, id="2", marks=pytest.mark.full),
        pytest.param(3, SINGLE, 1, id="3"),
        pytest.param(4, DDP, 2, id="2-of-2-ddp"),
        pytest.param(4, FSDP, 2, id="2-of-2-fsdp", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("microbatch", [pytest.param(1, marks=pytest.mark.full), 4])
def test_agreeing_after_every_step_of_sgd_is_ddp(
    workers: Workers, size: int, inner: dict[str, Any], replica_size: int, microbatch: int
) -> None:
    """With H = 1, outer rate 1 and SGD the trajectory is one process's, for shares of any size."""
    strategy = local_sgd(1, inner=inner, replica_size=replica_size)
    proof = Proof(strategy=strategy, microbatch_size=microbatch, **PLAIN_SGD)
    theirs = train(World(), dataclasses.replace(proof, strategy=SINGLE))
    assert_equal(trained(workers, proof, size=size), theirs, bound=1e-9)


def by_hand(proof: Proof, *, size: int, every: int, lr: float, momentum: float) -> dict[str, Tensor]:
    """DiLoCo on ``size`` replicas as algorithm 1 of the paper has it, one after another in this process."""
    job = job_for(proof)
    replicas = [job.build_model() for _ in range(size)]
    inner = [torch.optim.AdamW(r.parameters(), lr=1.0, weight_decay=0.1) for r in replicas]
    agreed = job.build_model()
    outer = torch.optim.SGD(agreed.parameters(), lr=lr, momentum=momentum, nesterov=True)
    seen = [0] * size
    for step in range(proof.steps):
        everything = global_batch(proof, step)
        for rank, (replica, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            mine = everything[rank::size]
            targets = int(sum((batch.tensors["labels"] != IGNORED).sum() for batch in mine))
            mine = [dataclasses.replace(batch, step_targets=targets) for batch in mine]
            accumulate(replica, mine, job=job, step=step, device=torch.device("cpu"))
            if proof.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(replica.parameters(), proof.max_grad_norm)
            optimizer.param_groups[0]["lr"] = job.lr(step)
            optimizer.step()
            optimizer.zero_grad()
            seen[rank] += targets
        if (step + 1) % every == 0:
            for shared, *theirs in zip(agreed.parameters(), *(r.parameters() for r in replicas), strict=True):
                moved = [n / sum(seen) * (shared - own) for n, own in zip(seen, theirs, strict=True)]
                shared.grad = torch.stack(moved).sum(0).detach()
            outer.step()
            seen = [0] * size
            for replica in replicas:
                replica.load_state_dict(agreed.state_dict())
    return {name: p.detach() for name, p in agreed.named_parameters()}


@pytest.mark.parametrize(
    ("size", "inner", "replica_size"),
    [
        pytest.param(2, SINGLE, 1, id="2", marks=pytest.mark.full),
        pytest.param(3, SINGLE, 1, id="3"),
        pytest.param(4, DDP, 2, id="2-of-2-ddp", marks=pytest.mark.full),
        pytest.param(4, FSDP, 2, id="2-of-2-fsdp"),
    ],
)
def test_it_is_the_papers_algorithm(
    workers: Workers, size: int, inner: dict[str, Any], replica_size: int
) -> None:
    """AdamW inside, Nesterov outside, dropout, each replica clipping by itself: as written down by hand."""
    strategy = diloco(sync_every=4, outer_lr=0.7, outer_momentum=0.9, inner=inner, replica_size=replica_size)
    proof = Proof(strategy=strategy, steps=12, microbatch_size=2, global_batch_size=11)
    expected = by_hand(proof, size=size // replica_size, every=4, lr=0.7, momentum=0.9)
    ours = trained(workers, proof, size=size).weights
    assert largest_difference({name: ours[name] for name in expected}, expected)[0] <= 1e-9


STREAMING = {"sync_every": 5, "num_fragments": 3, "overlap": 2}


@pytest.mark.parametrize(
    ("options", "split", "size"),
    [
        pytest.param({"sync_every": 5}, 5, 2, marks=pytest.mark.full),
        ({"sync_every": 5}, 7, 3),
        pytest.param({"sync_every": 5, "quantize": "int8"}, 7, 2, marks=pytest.mark.full),
        (STREAMING, 7, 2),
        pytest.param(STREAMING, 11, 3, marks=pytest.mark.full),
        pytest.param({**STREAMING, "inner": FSDP, "replica_size": 2}, 7, 4, marks=pytest.mark.full),
    ],
    ids=["between-rounds", "within-a-round", "int8", "streaming-2", "streaming-3", "streaming-fsdp"],
)
def test_resuming_equals_not_having_stopped(
    workers: Workers, tmp_path: Path, options: dict[str, Any], split: int, size: int
) -> None:
    """The checkpoint holds what is agreed on, outer momentum, means under way and each replica's state."""
    proof = Proof(strategy=diloco(**options), steps=14)
    unbroken = trained(workers, proof, size=size)
    trained(workers, dataclasses.replace(proof, steps=split, save_to=str(tmp_path)), size=size)
    tail = dataclasses.replace(proof, first_step=split, load_from=str(tmp_path))
    assert_equal(trained(workers, tail, size=size), unbroken, bound=1e-12, first=split)


def test_looking_changes_nothing(workers: Workers, tmp_path: Path) -> None:
    """Evaluations and checkpoints in the middle of a round leave the trajectory as it is, to the bit."""
    for options in ({"sync_every": 5}, STREAMING):
        proof = Proof(strategy=diloco(**options), steps=9)
        plain, looked = (
            trained(workers, proof, size=2),
            workers.run(train_looking, proof, size=2, timeout=LONG)[0],
        )
        assert plain.losses == looked.losses
        assert largest_difference(plain.weights, looked.weights)[0] == 0.0
        assert plain.sums == looked.sums


def train_looking(world: World, proof: Proof) -> Trajectory:
    """`train` with an evaluation and a checkpoint after every step."""
    from distrib.testing import proof as module

    class Looking:
        def __init__(self, strategy: Any) -> None:
            self.strategy = strategy

        def __getattr__(self, name: str) -> Any:
            return getattr(self.strategy, name)

        def train_step(self, *arguments: Any) -> Any:
            result = self.strategy.train_step(*arguments)
            module.evaluation(self.strategy)
            module.saved_weights(self.strategy, world, proof)
            module.evaluation(self.strategy)
            return result

    plain_build = module.build
    module.build = lambda *a, **k: Looking(plain_build(*a, **k))  # type: ignore[assignment]
    try:
        return train(world, proof)
    finally:
        module.build = plain_build


def test_what_is_evaluated_is_what_is_saved(workers: Workers, tmp_path: Path) -> None:
    """In the middle of a round one process that loads ``model/`` evaluates to the very numbers."""
    proof = Proof(strategy=diloco(sync_every=5), steps=7, save_to=str(tmp_path))
    ours = trained(workers, proof, size=3)
    loaded = dataclasses.replace(proof, strategy=SINGLE, first_step=7, load_from=str(tmp_path), save_to=None)
    theirs = train(World(), loaded)
    assert ours.sums == pytest.approx(theirs.sums, abs=1e-9)
    assert largest_difference(ours.weights, theirs.weights)[0] == 0.0


def dropped(world: World, proof: Proof) -> tuple[list[str], float]:
    """What a strategy drops of a checkpoint, and the norm of the outer momentum it has afterwards."""
    strategy = build(proof.strategy, key="strategy", plugins=())
    strategy.setup(job_for(proof), world)
    try:
        assert proof.load_from is not None
        reader = StateReader(Path(proof.load_from))
        strategy.load(reader)
        session = getattr(strategy, "_session", None)
        momentum = sum(f.velocity.norm().item() for f in session.outer.fragments) if session else 0.0
        return reader.dropped(), momentum
    finally:
        strategy.close()


def test_others_take_what_they_can(workers: Workers, tmp_path: Path) -> None:
    """The outer momentum serves any number of replicas; what is dropped is named."""
    proof = Proof(strategy=diloco(sync_every=5), steps=7, save_to=str(tmp_path))
    workers.run(train, proof, size=2)
    there = dataclasses.replace(proof, load_from=str(tmp_path), save_to=None)
    assert [names for names, _ in workers.run(dropped, there, size=2)] == [[], []]
    for names, momentum in workers.run(dropped, there, size=3):
        assert names == ["diloco-replicas"]
        assert momentum > 0
    alone = dataclasses.replace(there, strategy=DDP)
    assert workers.run(dropped, alone, size=2)[0][0] == ["diloco", "diloco-replicas"]
    tail = dataclasses.replace(there, first_step=7, steps=9)
    assert len(trained(workers, tail, size=3).losses) == 2
    assert len(trained(workers, dataclasses.replace(tail, strategy=FSDP), size=2).losses) == 2


def sum_and_parts(world: World, quantize: Quantize) -> tuple[Tensor, list[Tensor]]:
    """The quantised sum over ranks, and every rank's part of it."""
    from distrib.parallel.quantize import sum_over
    from distrib.rendezvous import side_group

    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) for rank in range(world.size)]
    group = side_group(world, "test", rank=world.rank, size=world.size)
    return sum_over(group, parts[world.rank], quantize=quantize), parts


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_quantised_sum_is_rounded_twice(workers: Workers, size: int) -> None:
    """int8 is off by half a level of each part and of the sum; all ranks get the same bits."""
    sums = workers.run(sum_and_parts, "int8", size=size)
    total, parts = sums[0]
    assert all(torch.equal(total, other) for other, _ in sums)
    blocks = [torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK) for part in parts]
    largest = sum(block.abs().amax(dim=1) for block in blocks)
    bound = (2 * largest * 0.5 / LEVELS * 1.01).repeat_interleave(BLOCK)[: len(total)]
    assert ((total - sum(parts)).abs() <= bound).all()
    exact = workers.run(sum_and_parts, "none", size=size)[0]
    torch.testing.assert_close(exact[0], sum(exact[1]), rtol=1e-6, atol=1e-6)


def test_a_replica_that_skips_does_not_spoil_the_others(workers: Workers) -> None:
    """A loss that is NaN on one replica leaves that one step of that one replica out."""
    proof = Proof(strategy=diloco(sync_every=2), microbatch_size=5, steps=6, nan_at=(2, 1))
    ranks = workers.run(train, proof, size=2)
    assert ranks[0].updated == [True] * 6
    assert ranks[1].updated == [True, True, False, True, True, True]
    assert all(weight.isfinite().all() for weight in ranks[0].weights.values())


ROUND = 50


def bytes_of_steps(world: World, name: str, options: dict[str, Any], *spans: int) -> list[int]:
    """What this rank's sockets send in so many steps, for each span in turn; the first begins training."""
    recipes = job(size=world.size, precision="fp32", width=128)
    read: list[int] = []
    counter = SentBytes()
    with strategy_of(Case(strategy=name, options=options), world, job=recipes) as strategy:
        first = 0
        for steps in (0, *spans):
            run_steps(strategy, first=first, steps=steps)
            first += steps
            strategy.reduce({"quiet": torch.ones(())})
            read.append(sent_until_quiet(counter))
    return read[1:]


def sent_until_quiet(counter: SentBytes) -> int:
    """Bytes until none has left for a while: a fragment's exchange goes on besides the steps after it."""
    total, latest = 0, 1
    while latest:
        time.sleep(0.2)
        latest = counter.since_last() or 0
        total += latest
    return total


@pytest.mark.full
@pytest.mark.parametrize("size", [2, 4])
def test_it_sends_as_much_less_as_it_says(workers: Workers, size: int) -> None:
    """With H = 50 at least 50 times less than DDP in as many steps, 150 as int8; not nothing."""
    two_steps = workers.run(bytes_of_steps, "ddp", {}, 1, 2, size=size, timeout=LONG)
    ddp = max(sent for _, sent in two_steps) * ROUND / 2
    for quantize, least in (("none", 50), ("bf16", 99), ("int8", 150)):
        ranks = workers.run(bytes_of_steps, "diloco", {"quantize": quantize}, ROUND, size=size, timeout=LONG)
        times = ddp / max(sent for (sent,) in ranks)
        print(f"{size} replicas, {quantize}: {times:.2f} times fewer bytes than DDP")
        assert least <= times <= 4.2 * ROUND


def test_fragments_share_out_the_bytes_of_a_round(workers: Workers) -> None:
    """Five fragments send as much in a round as one, never more than half of it at once."""
    every = ROUND // 5
    options = {"num_fragments": 5, "sync_every": ROUND}
    spans = [every] * 5
    sent = workers.run(bytes_of_steps, "diloco", options, *spans, size=2, timeout=LONG)[0]
    with torch.device("meta"):
        whole = 4 * sum(parameter.numel() for parameter in build_model(128).parameters())
    assert whole <= sum(sent) <= 1.02 * whole
    assert all(0 < part < 0.5 * whole for part in sent)
