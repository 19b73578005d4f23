"""Optimizer recipes: torch's classes, and weight decay only on matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distrib.errors import ConfigError
from distrib.optimizers import SGD, AdamW, OptimizerRecipe


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("recipe", [AdamW(weight_decay=0.1), SGD(weight_decay=0.1)])
def test_norms_and_biases_are_not_decayed(recipe: OptimizerRecipe) -> None:
    """Matrices decay; everything with fewer than two dimensions does not; nothing is left out."""
    module = model()
    optimizer = recipe(module.named_parameters())
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in module.parameters()}
    assert decay == expected


def test_frozen_parameters_are_left_out() -> None:
    """A parameter that is not trained has no optimizer state and is never moved by decay."""
    module = model()
    module[0].requires_grad_(False)  # type: ignore[operator, index]
    optimizer = AdamW()(module.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_a_model_without_vectors_has_one_group() -> None:
    """No empty group, which torch would warn about."""
    assert len(SGD()(nn.Linear(2, 2, bias=False).named_parameters()).param_groups) == 1


@pytest.mark.parametrize(
    ("recipe", "reference"),
    [
        (
            AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0),
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0),
        ),
        (
            SGD(lr=0.01, momentum=0.8, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True),
        ),
    ],
)
def test_settings_reach_torch(recipe: OptimizerRecipe, reference: object) -> None:
    """Three updates are those of torch's own optimizer with the same settings."""
    assert callable(reference)
    ours, theirs = model(), model()
    for module, optimizer in (
        (ours, recipe(ours.named_parameters())),
        (theirs, reference(theirs.parameters())),
    ):
        for _ in range(3):
            module(torch.tensor([0, 1, 4])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AdamW(lr=-1.0), "optimizer.lr"),
        (lambda: AdamW(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: AdamW(betas=(0.9,)), "optimizer.betas"),  # type: ignore[arg-type]
        (lambda: SGD(momentum=0.0, nesterov=True), "optimizer.nesterov"),
    ],
)
def test_impossible_settings_are_refused_by_key(make: object, key: str) -> None:
    """What no optimizer can do is refused under its dotted key, before torch is needed."""
    assert callable(make)
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.key == key
