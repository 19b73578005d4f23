"""Recipes for torch's optimizers, with weight decay only where it belongs.

Parameters with fewer than two dimensions (biases, the scales of norms) are not decayed: decay
restrains the weights of matrix products, and pulling a norm's scale to zero only fights the norm.
The rule needs no names, so it holds for any model; embeddings are matrices and are decayed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distrib.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


class OptimizerRecipe(ABC):
    """Builds an optimizer over named parameters, whenever the strategy is ready for one."""

    lr: float
    """The peak learning rate, which the schedule scales."""

    @abstractmethod
    def __call__(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        """An optimizer over the parameters that are trained, in the order given."""


class AdamW(OptimizerRecipe):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
        fused: one kernel for the whole update; on CPUs and GPUs alike faster than a loop over tensors.
    """

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool = True,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError("optimizer.betas", list(betas), "two numbers, each at least 0 and below 1")
        _check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.fused = fused

    def __call__(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        import torch

        return torch.optim.AdamW(
            decay_groups(named_parameters, weight_decay=self.weight_decay),
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=self.fused,
        )


class SGD(OptimizerRecipe):
    """Gradient descent with momentum (Sutskever et al. 2013)."""

    def __init__(
        self, *, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        _check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and momentum == 0:
            raise ConfigError("optimizer.nesterov", nesterov, "needs optimizer.momentum above 0")
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay

    def __call__(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        import torch

        return torch.optim.SGD(
            decay_groups(named_parameters, weight_decay=self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], *, weight_decay: float
) -> list[dict[str, Any]]:
    """torch's parameter groups: matrices with decay, then vectors and scalars without."""
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _check_not_negative(**settings: float) -> None:
    for name, value in settings.items():
        if value < 0:
            raise ConfigError(f"optimizer.{name}", value, "must not be negative")
