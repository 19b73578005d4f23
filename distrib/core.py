"""The frozen values that training, data and strategies exchange.

This module imports nothing at run time, so that a command which never touches a tensor
(composing a configuration, planning a launch) does not pay for importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")

IGNORED = -100
"""The label of a position that is not a target (torch's ``cross_entropy`` default)."""

OWN = "strategy/"
"""How the names of a strategy's own measures begin in the run's records."""

PrecisionName = Literal["fp32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One microbatch (or one evaluation batch), collated and on its device."""

    tensors: Mapping[str, Tensor]
    """The model's inputs, and ``labels``: integers, `IGNORED` where there is no target."""
    index: int
    """Place in the global batch, or in the evaluation order; keys the randomness."""
    step_targets: int
    """Targets in the *whole* global batch: what the gradient is divided by, once."""

    def ghost(self) -> Batch:
        """The same shapes without any target: adds zero to loss, gradient and counts.

        For a rank that must take part in collectives but has nothing of its own to run.
        """
        labels = self.tensors["labels"]
        return replace(
            self, tensors={**self.tensors, "labels": labels.new_full((), IGNORED).expand_as(labels)}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShard:
    """Which microbatches of every global batch a rank runs: ``index, index+count, …`` unless balanced."""

    index: int
    count: int
    owners: Callable[[int, int], Sequence[int]] | None = None
    """The shard that runs each microbatch, by step and number of microbatches; None: in turn.

    Has its last word on a step once no more than `Job.prefetch` others lie before it.
    """

    def take(self, items: Sequence[T], *, step: int | None = None) -> Sequence[T]:
        """This shard's of a step's microbatches; None: of items that belong to no step, always in turn."""
        if self.owners is None or step is None:
            return items[self.index :: self.count]
        owners = self.owners(step, len(items))
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.index]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step leaves behind on this rank."""

    loss: Tensor
    """Sum over this shard's targets (a scalar, detached, not reduced over ranks)."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping: the same number on every rank."""
    updated: bool
    """False where the gradient was not finite and the update was left out, on all ranks alike."""
    meet: bool = False
    """Whether every rank comes together after this step, because one has voted (`Strategy.tally`)."""
    redo: bool = False
    """Whether nothing has happened: a rank was lost, and `DataShard.owners` gives its microbatches to others.

    All ranks run the step again, with what is theirs of it now.
    """


@dataclass(frozen=True, kw_only=True)
class Job:
    """Recipes for one training run: what a strategy needs to build and to perform its steps.

    Recipes and not objects, because the engines disagree about order: FSDP builds the optimizer
    after sharding, ZeRO-3 before; and both split the model while it is built.
    """

    build_model: Callable[[], nn.Module]
    """A fresh model on the CPU, in fp32 (fp64 under that precision); the same on every rank.

    Built by torch's operations from seed and configuration alone, without talking to other ranks: a strategy
    that splits the model runs it so that no rank holds all of it (`distrib.parallel.building`).
    """
    build_optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
    """An optimizer over the given named parameters, decay groups included."""
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    """The loss *summed* over the targets of one microbatch: a differentiable scalar."""
    evaluate: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]]
    """Sums over the targets of one batch, by name; adding two batches' sums is exact."""
    lr: Callable[[int], float]
    """The learning rate of optimizer step ``t``, counted from 0."""
    num_microbatches: int
    """Microbatches in a full global batch (the last batch of an epoch may have fewer)."""
    max_grad_norm: float | None
    """Global gradient norm above which the gradient is scaled down; None: no clipping."""
    precision: PrecisionName
    seed: int
    prefetch: int = 0
    """Steps after the one that runs whose microbatches may have been collated."""


class Progress(Protocol):
    """Is told how far training has come."""

    def __call__(self, done: int, /) -> None:
        """``done`` optimizer steps are done in all."""

    def met(self, done: int, /) -> None:
        """After ``done`` steps all ranks have met, in an operation that all of them take part in."""


class Unwatched(Progress):
    """Takes no notice."""

    def __call__(self, done: int, /) -> None: ...

    def met(self, done: int, /) -> None: ...


UNWATCHED = Unwatched()
