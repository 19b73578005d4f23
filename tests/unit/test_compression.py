"""What PowerSGD loses of a gradient, and that it gives it back: the algorithm, in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distrib.parallel.compression import PowerSGD

ROWS, COLUMNS, RANK = 24, 32, 2


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def powersgd() -> PowerSGD:
    return PowerSGD(nn.Linear(COLUMNS, ROWS, dtype=torch.float64), rank=RANK, start=0)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compressed(powersgd: PowerSGD, gradient: Tensor) -> Tensor:
    approximate = gradient.clone()
    powersgd.compress({"weight": approximate}, [])
    return approximate


def test_exact_for_low_rank(powersgd: PowerSGD) -> None:
    """A gradient of no more than ``rank`` dimensions arrives as it was."""
    gradient = draw(ROWS, RANK, seed=1) @ draw(RANK, COLUMNS, seed=2)
    torch.testing.assert_close(compressed(powersgd, gradient), gradient, rtol=0, atol=1e-12)


def test_error_feedback_gives_back_what_was_lost(powersgd: PowerSGD) -> None:
    """The sum of all that arrived, and the error that is left, is the sum of the gradients."""
    gradients = [draw(ROWS, COLUMNS, seed=seed) for seed in range(10)]
    arrived = [compressed(powersgd, gradient) for gradient in gradients]
    assert not torch.allclose(sum(arrived, torch.zeros(())), sum(gradients, torch.zeros(())), atol=0.1)
    torch.testing.assert_close(
        sum(arrived, powersgd.errors["weight"]), sum(gradients, torch.zeros(())), rtol=0, atol=1e-12
    )


def test_what_arrives_has_the_rank(powersgd: PowerSGD) -> None:
    """No more than two factors of ``rank`` columns is sent of a matrix."""
    assert torch.linalg.matrix_rank(compressed(powersgd, draw(ROWS, COLUMNS, seed=3))) == RANK


def test_repeated_gradient_finds_the_best_approximation(powersgd: PowerSGD) -> None:
    """Going on from the last factor is a power iteration: it ends at the largest singular values."""
    left, right = torch.linalg.qr(draw(ROWS, ROWS, seed=4)).Q, torch.linalg.qr(draw(COLUMNS, ROWS, seed=5)).Q
    singular = torch.tensor([4.0, 3.0] + [1.0] * (ROWS - 2), dtype=torch.float64)
    gradient = (left * singular) @ right.T
    for _ in range(60):
        powersgd.errors.clear()
        approximate = compressed(powersgd, gradient)
    best = (left[:, :RANK] * singular[:RANK]) @ right[:, :RANK].T
    # Each turn shrinks the rest by (1/3)^2: 60 turns leave 1e-57 of it, so rounding alone is seen.
    torch.testing.assert_close(approximate, best, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "worth"), [((32,), False), ((), False), ((8, 8), False), ((24, 32), True), ((24, 8, 4), True)]
)
def test_only_what_becomes_smaller_is_factored(
    powersgd: PowerSGD, shape: tuple[int, ...], worth: bool
) -> None:
    """Vectors and small matrices are sent as they are."""
    assert powersgd.is_worth_it(torch.zeros(shape)) is worth


def test_others_are_not_touched(powersgd: PowerSGD) -> None:
    """What is not factored arrives as the exact mean."""
    bias, expected = draw(ROWS, seed=6), draw(ROWS, seed=6)
    powersgd.compress({}, [bias])
    assert torch.equal(bias, expected)
    assert not powersgd.errors


def test_first_factor_depends_on_the_parameter_alone() -> None:
    """Another order of compressing, as after a restart, begins with the same factors."""
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS), nn.Linear(ROWS, COLUMNS))
    matrices = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}
    one, other = (PowerSGD(model, rank=RANK, start=0) for _ in range(2))
    forward = {name: one.factor(name, matrix) for name, matrix in matrices.items()}
    for name in reversed(matrices):
        assert torch.equal(other.factor(name, matrices[name]), forward[name])
