"""What every strategy promises, on real processes: the one-process trajectory whatever runs where."""

from __future__ import annotations

import dataclasses
import gc
import math
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from matrix import current, table
from strategies import CANDIDATES, Candidate

from distrib.errors import ConfigError
from distrib.strategies.base import Strategy
from distrib.testing.proof import Proof, Trajectory, initial_weights, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

REFERENCE = {"_target_": "distrib.strategies.single.Single"}
LOSS_BOUND = {"fp64": 1e-9, "fp32": 1e-5}
WEIGHT_BOUND = {"fp64": 1e-9, "fp32": 5e-4}

pytestmark = pytest.mark.timeout(300)


@lru_cache
def reference(proof: Proof) -> Trajectory:
    """The one-process run, in this process."""
    (alone,) = trained([train(World(), proof)])
    return alone


def hashable(proof: Proof) -> Proof:
    return dataclasses.replace(
        proof, strategy=FrozenTarget(REFERENCE), first_step=0, load_from=None, save_to=None
    )


class FrozenTarget(dict[str, object]):
    """A target that can key a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def trained(outcomes: list[Trajectory | None]) -> list[Trajectory]:
    """The ranks that trained: a server returns nothing."""
    return [outcome for outcome in outcomes if outcome is not None]


def assert_same(outcomes: list[Trajectory | None], proof: Proof) -> None:
    ours = trained(outcomes)
    theirs = reference(hashable(proof))
    bound = LOSS_BOUND[proof.precision]
    first = proof.first_step
    for rank in ours:
        assert rank.losses == pytest.approx(theirs.losses[first:], abs=bound, rel=0)
        assert rank.grad_norms == pytest.approx(theirs.grad_norms[first:], abs=10 * bound, rel=0)
    difference, name = largest_difference(ours[0].weights, theirs.weights)
    assert difference <= WEIGHT_BOUND[proof.precision], f"{name} differs by {difference}"
    assert ours[0].sums["targets"] == theirs.sums["targets"]
    assert ours[0].sums["right"] == theirs.sums["right"]


def marks(candidate: Candidate, *, size: int, microbatch: int, precision: str) -> list[pytest.MarkDecorator]:
    """What is left to `make full-test`: all but each size once, each microbatch size and precision once.

    A variant's microbatches are its original's, so that it has one size of them.
    """
    if candidate.is_variant and microbatch != 4:
        return [pytest.mark.full]
    finest = precision == candidate.precisions[0]
    if finest and (microbatch == 4 or size == candidate.sizes[-1]):
        return [] if (size, microbatch) == (2, 4) else [pytest.mark.slow]
    coarse_once = (size, microbatch) == (candidate.sizes[-1], 4)
    return [pytest.mark.slow] if coarse_once else [pytest.mark.full]


def also_full(candidate: Candidate) -> list[pytest.MarkDecorator]:
    return [pytest.mark.full] if candidate.is_variant else []


def each() -> list[object]:
    """Every strategy; those that share another's code in `make full-test` only."""
    return [pytest.param(c, id=c.name, marks=also_full(c)) for c in CANDIDATES]


def cases() -> list[object]:
    """Every strategy, world size, microbatch size and precision."""
    return [
        pytest.param(
            candidate,
            size,
            microbatch,
            precision,
            id=f"{candidate.name}-{size}-{microbatch}-{precision}",
            marks=marks(candidate, size=size, microbatch=microbatch, precision=precision),
        )
        for candidate in CANDIDATES
        for size in candidate.sizes
        for microbatch in (1, 4, 8)
        for precision in candidate.precisions
    ]


@pytest.mark.parametrize(("candidate", "size", "microbatch", "precision"), cases())
def test_trajectory(
    workers: Workers, candidate: Candidate, size: int, microbatch: int, precision: str
) -> None:
    """20 AdamW steps with dropout, clipping and uneven microbatches equal one process."""
    proof = Proof(strategy=candidate.target, microbatch_size=microbatch, precision=precision)
    assert_same(workers.run(train, proof, size=size), proof)


@pytest.mark.slow
@pytest.mark.parametrize("microbatch", [*(pytest.param(n, marks=pytest.mark.full) for n in (1, 3)), 8])
@pytest.mark.parametrize("candidate", each())
def test_microbatch_size_changes_nothing_without_dropout(
    workers: Workers, candidate: Candidate, microbatch: int
) -> None:
    """Without dropout every microbatch size gives one trajectory, also one that leaves ranks idle."""
    whole = Proof(
        strategy=candidate.target, precision=candidate.precisions[0], microbatch_size=10, dropout=0.0
    )
    ours = dataclasses.replace(whole, microbatch_size=microbatch)
    assert_same(workers.run(train, ours, size=max(candidate.sizes)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", each())
def test_momentum_sgd(workers: Workers, candidate: Candidate) -> None:
    """The promise does not depend on the optimizer: SGD would show a gradient scaled wrongly."""
    proof = Proof(
        strategy=candidate.target,
        precision=candidate.precisions[0],
        momentum_sgd=True,
        max_grad_norm=None,
        lr=0.1,
    )
    assert_same(workers.run(train, proof, size=max(candidate.sizes)), proof)


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidate",
    [pytest.param(c, id=c.name, marks=[pytest.mark.full] * (c.name != "fsdp")) for c in CANDIDATES],
)
def test_a_weight_that_two_blocks_use_stays_one(workers: Workers, candidate: Candidate) -> None:
    """It gets the gradient of both, and a checkpoint holds it once, whatever an engine cuts by block."""
    proof = Proof(strategy=candidate.target, precision=candidate.precisions[0], steps=5, tied_blocks=True)
    ours = workers.run(train, proof, size=max(candidate.sizes))
    assert_same(ours, proof)
    assert sum("attention_in" in name for name in trained(ours)[0].weights) == 1


def moves() -> list[object]:
    """Every strategy, precision and two sizes; to and from the largest outside of `make full-test`."""
    return [
        pytest.param(
            candidate,
            precision,
            sizes,
            id=f"{precision}-{candidate.name}-{sizes[0]}-to-{sizes[1]}",
            marks=also_full(candidate)
            if number == 0 and candidate.sizes[-1] in sizes
            else [pytest.mark.full],
        )
        for candidate in CANDIDATES
        for number, precision in enumerate(candidate.precisions)
        for sizes in zip(candidate.sizes, candidate.sizes[1:] + candidate.sizes[:1], strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "precision", "sizes"), moves())
def test_resume_at_another_world_size(
    workers: Workers, tmp_path: Path, candidate: Candidate, precision: str, sizes: tuple[int, int]
) -> None:
    """Seven steps, a checkpoint, and the rest at another size equal an unbroken run."""
    proof = Proof(strategy=candidate.target, precision=precision)
    head = dataclasses.replace(proof, steps=7, save_to=str(tmp_path))
    workers.run(train, head, size=sizes[0])
    tail = dataclasses.replace(proof, first_step=7, load_from=str(tmp_path))
    assert_same(workers.run(train, tail, size=sizes[1]), tail)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(i, id=c.name, marks=also_full(c)) for i, c in enumerate(CANDIDATES)]
)
def test_checkpoint_moves_to_another_strategy(workers: Workers, tmp_path: Path, number: int) -> None:
    """What one strategy saves the next one in the list goes on from; test_portable.py tries every pair."""
    candidate, other = CANDIDATES[number], CANDIDATES[(number + 1) % len(CANDIDATES)]
    precision = next(name for name in other.precisions if name in candidate.precisions)
    head = Proof(strategy=candidate.target, precision=precision, steps=7, save_to=str(tmp_path))
    workers.run(train, head, size=max(candidate.sizes))
    tail = Proof(strategy=other.target, precision=precision, first_step=7, load_from=str(tmp_path))
    assert_same(workers.run(train, tail, size=max(other.sizes)), tail)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", each())
def test_nan_on_one_rank_skips_the_step_on_all(workers: Workers, candidate: Candidate) -> None:
    """A loss that is NaN on one rank leaves every rank's weights as they were, and training goes on."""
    size = max(candidate.sizes)
    precision = candidate.precisions[0]
    proof = Proof(
        strategy=candidate.target, precision=precision, microbatch_size=2, steps=1, nan_at=(0, size - 1)
    )
    for rank in trained(workers.run(train, proof, size=size)):
        assert rank.updated == [False]
        assert not math.isfinite(rank.grad_norms[0])
        if rank.weights:
            assert largest_difference(rank.weights, initial_weights(proof))[0] == 0.0
    later = dataclasses.replace(proof, steps=3, nan_at=(1, size - 1))
    ours = trained(workers.run(train, later, size=size))
    assert [rank.updated for rank in ours] == [[True, False, True]] * (size - candidate.num_servers)
    difference, _ = largest_difference(ours[0].weights, reference(hashable(later)).weights)
    assert difference <= WEIGHT_BOUND[precision]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "precision"),
    [
        pytest.param(c, precision, id=f"{precision}-{c.name}", marks=also_full(c))
        for c in CANDIDATES
        for precision in c.rounded
    ],
)
def test_autocast_is_that_of_one_process(workers: Workers, candidate: Candidate, precision: str) -> None:
    """Each microbatch is rounded as in one process, so losses differ by less than one rounding of them."""
    proof = Proof(strategy=candidate.target, precision=precision, steps=10)
    ours = trained(workers.run(train, proof, size=several(candidate)))
    theirs = reference(hashable(proof))
    assert ours[0].losses == pytest.approx(theirs.losses, abs=2e-3, rel=0)
    exact = reference(hashable(dataclasses.replace(proof, precision="fp32")))
    assert abs(ours[0].losses[0] - exact.losses[0]) > 1e-5, "nothing was rounded"
    assert {tensor.dtype for tensor in ours[0].weights.values()} == {torch.float32}


def several(candidate: Candidate) -> int:
    """The smallest job of more than one process, where it can have one."""
    return next((size for size in candidate.sizes if size > 1), 1)


def refusal(world: World, proof: Proof) -> str:
    from distrib.targets import build
    from distrib.testing.proof import job_for

    strategy = build(proof.strategy, key="strategy", plugins=())
    try:
        strategy.setup(job_for(proof), world)
    except ConfigError as error:
        return f"{error.key}={error.value}"
    finally:
        strategy.close()
    return "set up"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "precision"),
    [pytest.param(c, precision, id=f"{precision}-{c.name}") for c in CANDIDATES for precision in c.refused],
)
def test_a_precision_it_does_not_have_is_refused(
    workers: Workers, candidate: Candidate, precision: str
) -> None:
    """By its key and value, on every rank."""
    size = several(candidate)
    proof = Proof(strategy=candidate.target, precision=precision)
    assert workers.run(refusal, proof, size=size) == [f"precision={precision}"] * size


def test_the_table_in_the_readme_is_that_of_the_tests() -> None:
    """What the README says each strategy can do is what is tried here, and what the benchmarks measured."""
    assert current() == table(), "run: python tests/distributed/matrix.py"


def lifecycle(world: World, proof: Proof) -> tuple[bool, int, list[float]] | None:
    """Close before setup, twice after; gradients left after a step; sums reduced."""
    from distrib.targets import build
    from distrib.testing.proof import job_for

    strategy = build(proof.strategy, key="strategy", plugins=())
    strategy.close()
    strategy.setup(job_for(proof), world)
    found = strategy.run(lambda: one_step(strategy, proof))
    strategy.close()
    strategy.close()
    return found


def one_step(strategy: Strategy, proof: Proof) -> tuple[bool, int, list[float]]:
    """Whether nothing was on a GPU before it, gradients left after it, sums reduced."""
    from distrib.testing.proof import global_batch

    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    everything = global_batch(proof, 0)
    strategy.train_step(list(strategy.shard.take(everything, step=0)) or [everything[0].ghost()], 0)
    gradients = sum(1 for weight in weights_in_memory() if weight.grad is not None and weight.grad.any())
    ones = strategy.reduce({"a": torch.ones(2), "b": torch.tensor(strategy.shard.index)})
    return before == 0, gradients, [*ones["a"].tolist(), ones["b"].item()]


def weights_in_memory() -> list[torch.nn.Parameter]:
    """Those of any model in this process, but what `Workers` has frozen after a call that imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that torch wants nobody to look at
        tensors = [held for held in gc.get_objects() if isinstance(held, torch.Tensor)]
    return [held for held in tensors if isinstance(held, torch.nn.Parameter)]


@pytest.mark.slow
@pytest.mark.parametrize("candidate", each())
def test_lifecycle(workers: Workers, candidate: Candidate) -> None:
    """A step leaves no gradient, reduce counts each shard once, close may be called at any time."""
    size = max(candidate.sizes)
    count = size - candidate.num_servers
    proof = Proof(strategy=candidate.target, precision=candidate.precisions[0])
    found = [rank for rank in workers.run(lifecycle, proof, size=size) if rank is not None]
    assert len(found) == count
    for _, gradients, sums in found:
        assert gradients == 0
        assert sums == [count, count, count * (count - 1) / 2]


def what_is_left(world: World) -> tuple[int, int]:
    """How many weights of any model there are, and how many of gloo's threads; `Workers` has collected."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return len(weights_in_memory()), sum("gloo" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", each())
def test_nothing_is_left_of_a_closed_job(workers: Workers, candidate: Candidate) -> None:
    """No weight; and no thread more than one such job leaves, where an engine's caches keep its group."""
    size = min(candidate.sizes, key=lambda size: (size == 1, size))
    proof = Proof(strategy=candidate.target, precision=candidate.precisions[-1], steps=2)
    left = []
    for _ in range(2):
        workers.run(train, proof, size=size)
        left.append(workers.run(what_is_left, size=size))
    assert [weights for job in left for weights, _ in job] == [0] * 2 * size
    assert left[1] == left[0]
