"""The arithmetic of a step, piece by piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distrib.core import IGNORED, DataShard
from distrib.errors import ConfigError
from distrib.parallel.precision import LossScale, autocast
from distrib.parallel.randomness import microbatch_seed, seed_microbatch
from distrib.parallel.reduce import flatten, unflatten
from distrib.parallel.state import named_weights
from distrib.parallel.update import clip_and_update
from distrib.strategies.single import Single
from distrib.testing.proof import Proof, TinyTransformer, global_batch, job_for, loss
from distrib.world import World

CPU = torch.device("cpu")


def update(
    optimizer: torch.optim.Optimizer,
    weight: nn.Parameter,
    *,
    max_grad_norm: float | None,
    loss_scale: float = 1.0,
) -> tuple[torch.Tensor, bool]:
    assert weight.grad is not None
    return clip_and_update(
        optimizer,
        [weight.grad],
        norm=weight.grad.norm(),
        lr=1.0,
        max_grad_norm=max_grad_norm,
        loss_scale=loss_scale,
    )


def test_the_gradient_is_that_of_the_mean_over_all_targets() -> None:
    """Two microbatches of unequal length give the gradient of one pass over all their tokens."""
    proof = Proof(strategy={}, dropout=0.0, max_grad_norm=None, lr=0.0, momentum_sgd=True)
    model = TinyTransformer(dropout=0.0).double()
    whole = global_batch(Proof(strategy={}, microbatch_size=10), 0)[0]
    strategy = Single()
    strategy.setup(job_for(proof), World())
    model.load_state_dict(strategy._replica.module.state_dict())
    (loss(model, whole.tensors) / whole.step_targets).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    result = strategy.train_step(global_batch(proof, 0), 0)
    assert result.grad_norm.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("limit", "length"), [(1.0, 1.0), (100.0, 5.0), (None, 5.0)])
def test_clipping_scales_the_gradient_to_the_limit(limit: float | None, length: float) -> None:
    """The returned norm is the one before clipping, the update uses the one after."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    weight.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=9.0)
    norm, updated = update(optimizer, weight, max_grad_norm=limit)
    assert (norm.item(), updated) == (5.0, True)
    assert weight.detach().norm().item() == pytest.approx(length, rel=1e-6)
    assert weight.grad is None


def test_a_loss_scale_is_taken_back_before_clipping() -> None:
    """A gradient 1024 times too large gives the update of the true one."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0]) * 1024
    norm, _ = update(torch.optim.SGD([weight], lr=1.0), weight, max_grad_norm=None, loss_scale=1024.0)
    assert norm.item() == 5.0
    assert torch.equal(weight.detach(), torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_update_from_a_gradient_that_is_not_finite(bad: float) -> None:
    """Weights and momentum stay as they are, and the gradient is cleared."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    weight.grad = torch.tensor([1.0, bad])
    _, updated = update(optimizer, weight, max_grad_norm=1.0)
    assert not updated
    assert torch.equal(weight.detach(), torch.ones(2))
    assert not optimizer.state
    assert weight.grad is None


def test_a_loss_without_gradient_can_still_spoil_the_step() -> None:
    """A NaN that no parameter feels through the chain rule is found all the same."""
    proof = Proof(strategy={}, nan_at=(0, 1))
    strategy = Single()
    strategy.setup(job_for(proof), World())
    assert not strategy.train_step(global_batch(proof, 0), 0).updated


def test_dropout_depends_on_seed_step_and_index_alone() -> None:
    """The same key gives the same mask whatever was drawn before; another key another mask."""

    def mask(seed: int, step: int, index: int) -> torch.Tensor:
        seed_microbatch(seed, step=step, index=index, device=CPU)
        return nn.functional.dropout(torch.ones(64), 0.5)

    first = mask(1, 2, 3)
    torch.rand(1000)
    assert torch.equal(mask(1, 2, 3), first)
    assert not any(torch.equal(mask(*key), first) for key in [(0, 2, 3), (1, 3, 2), (1, 2, 4)])


def test_microbatch_seeds_do_not_collide() -> None:
    """100,000 neighbouring keys are all different, also in the 32 bits that the CPU generator keeps."""
    seeds = [microbatch_seed(0, step=step, index=index) for step in range(1000) for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    # 1e5 draws from 2^32 values have 1.2 expected collisions; 12 would be nine sigma.
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > len(seeds) - 12


def test_a_ghost_has_no_target() -> None:
    """Its loss and its gradient are exactly zero, its shapes those of the batch."""
    batch = global_batch(Proof(strategy={}), 0)[0]
    ghost = batch.ghost()
    assert ghost.tensors["labels"].shape == batch.tensors["labels"].shape
    assert (ghost.tensors["labels"] == IGNORED).all()
    model = TinyTransformer(dropout=0.0)
    value = loss(model, ghost.tensors)
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_tied_weights_are_named_once() -> None:
    """A checkpoint holds a tied tensor under its first name only, and every buffer."""
    names = named_weights(TinyTransformer(dropout=0.0))
    assert "embedding.weight" in names
    assert "output.weight" not in names
    assert "temperature" in names


def test_sums_survive_flattening() -> None:
    """Names, shapes and values come back, scalars and matrices alike, as float64."""
    sums = {"a": torch.tensor(3), "m": torch.arange(6.0).view(2, 3)}
    back = unflatten(flatten(sums), sums)
    assert back["a"].shape == ()
    assert back["m"].dtype == torch.float64
    assert torch.equal(back["m"], sums["m"].double())


def test_fp16_needs_a_gpu() -> None:
    """Refused by name on a CPU, before anything runs."""
    with pytest.raises(ConfigError, match="precision=fp16"):
        autocast("fp16", CPU)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights() -> None:
    """Autocast reaches the matrix products and leaves the parameters alone."""
    model = nn.Linear(4, 4)
    with autocast("bf16", CPU)():
        assert model(torch.ones(1, 4)).dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32


def test_the_loss_scale_halves_on_overflow_and_grows_back() -> None:
    """Half after an overflow, double after the interval, one where it is not dynamic."""
    scale = LossScale(dynamic=True, start=16.0, growth_interval=2)
    for finite, expected in [(True, 16.0), (False, 8.0), (True, 8.0), (True, 16.0), (True, 16.0)]:
        scale.update(finite=finite)
        assert scale.value == expected
    fixed = LossScale(dynamic=False)
    fixed.update(finite=False)
    assert fixed.value == 1.0


def test_a_shard_takes_every_count_th() -> None:
    """The shards of a batch are disjoint and complete, also when the count does not divide it."""
    items = list(range(7))
    taken = [list(DataShard(index=index, count=3).take(items)) for index in range(3)]
    assert taken == [[0, 3, 6], [1, 4], [2, 5]]


def test_single_refuses_a_world_of_two() -> None:
    """The remedy names the strategy that would work."""
    with pytest.raises(ConfigError, match="strategy=ddp"):
        Single().setup(job_for(Proof(strategy={})), World(size=2))
