"""What the modes differ in: which pushes make an update, and when a worker may go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Sender = tuple[int, int]
"""A worker's rank, and its life: how often it had been started again."""


@dataclass(kw_only=True)
class Push:
    """What one worker sent of one step, whole: one that breaks off is not counted."""

    rank: int
    step: int
    base: int
    """The version of the weights it was computed from."""
    vector: Tensor
    """This server's part."""
    loss: float
    targets: float
    """That the worker's own microbatches had."""
    step_targets: float
    """Of the whole global batch, by which the gradient is divided already."""
    norm: float
    """Of the worker's whole gradient, where the mode needs it."""
    seconds: float
    """That a microbatch of it took."""
    touched: frozenset[str]
    """Parameters that have a gradient."""
    life: int = 0
    """Of the worker: how often it had been started again."""
    redone: int = 0
    """How often the worker knew that any step has been run again: which shares it went by."""
    applied: bool = False
    redo: bool = False
    """It was dropped: the worker is to run the step again."""

    @property
    def sender(self) -> Sender:
        """Who pushed."""
        return self.rank, self.life

    @property
    def at(self) -> tuple[int, int]:
        """Which of the times that its step was run."""
        return self.step, self.redone


@dataclass(kw_only=True)
class Seat:
    """A worker that is there."""

    rank: int
    since: int
    """The first step that cannot be finished without it; -1: there from the start."""
    life: int = 0
    """How often it has been started again."""
    clock: int = 0
    """Steps it has done."""
    applied: int = 0
    """The step after the last one that an update was made of; 0: none yet."""


class Rules(Protocol):
    """One mode."""

    stride: int
    """Steps between two pushes of a worker."""
    collective: bool
    """Whether an update takes one push of every worker."""
    sends_weights: bool
    """Whether a push is answered with the weights."""

    def due(self, pushes: Sequence[Push], seats: Mapping[int, Seat], *, version: int) -> list[Push]:
        """The pushes of the next update, by rank; empty: not yet."""

    def may_go_on(self, push: Push, *, version: int) -> bool:
        """Whether the worker that sent ``push`` may have its next weights."""


class Bounded:
    """An update per step, of all workers' gradients; a worker goes on at most ``staleness`` steps ahead.

    The bounded delay of Li et al. 2014 (OSDI, section 3.4), which keeps the condition of the stale
    synchronous parallel model of Ho et al. 2013: weights read for step t have all updates before
    step t - staleness. With a staleness of 0 this is bulk-synchronous.
    """

    collective = True
    sends_weights = True
    stride = 1

    def __init__(self, *, staleness: int) -> None:
        self.staleness = staleness

    def due(self, pushes: Sequence[Push], seats: Mapping[int, Seat], *, version: int) -> list[Push]:
        """All of step ``version``, once no worker that is there owes one."""
        mine = {push.rank: push for push in pushes if push.step == version}
        owed = {seat.rank for seat in seats.values() if seat.since <= version}
        return [mine[rank] for rank in sorted(mine)] if owed <= mine.keys() else []

    def may_go_on(self, push: Push, *, version: int) -> bool:
        return version >= push.step + 1 - self.staleness


class Unbounded:
    """An update per push, at once; nobody waits for anybody."""

    collective = False
    sends_weights = True
    stride = 1

    def due(self, pushes: Sequence[Push], seats: Mapping[int, Seat], *, version: int) -> list[Push]:
        """The oldest."""
        return list(pushes[:1])

    def may_go_on(self, push: Push, *, version: int) -> bool:
        return push.applied


class Averaged(Bounded):
    """A mean of all workers' parameters every ``stride`` steps."""

    def __init__(self, *, stride: int) -> None:
        super().__init__(staleness=0)
        self.stride = stride

    def may_go_on(self, push: Push, *, version: int) -> bool:
        return version > push.step


class Elastic(Unbounded):
    """A move of the centre whenever a worker has made ``stride`` steps; it has fetched the centre before."""

    sends_weights = False

    def __init__(self, *, stride: int) -> None:
        self.stride = stride
