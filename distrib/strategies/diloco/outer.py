"""The outer optimizer: what the replicas agreed on last, and how they agree anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from distrib.parallel.quantize import mean_over
from distrib.state import assign_files
from distrib.strategies.diloco.exchange import Exchange
from distrib.strategies.diloco.rounds import Rounds

Weights = Mapping[str, Tensor]


@dataclass(kw_only=True)
class Fragment:
    """Parameters that are exchanged together, as flat vectors in the host's memory."""

    names: Sequence[str]
    outer: Tensor
    """The weights that all replicas agreed on last."""
    velocity: Tensor
    targets: float = 0.0
    """What this replica has learnt from since: its weight in the next mean."""
    arriving: Future[Tensor] | None = field(default=None)
    """The mean pseudo-gradient under way."""

    def gather(self, weights: Weights) -> Tensor:
        """The fragment's part of ``weights``, copied."""
        flat = [weights[name].reshape(-1) for name in self.names]
        return torch.cat(flat).cpu() if flat else self.outer.new_zeros(0)

    def scatter(self, flat: Tensor, weights: Weights) -> None:
        """Overwrites the fragment's part of ``weights``."""
        if not self.names:
            return
        parts = torch.split(flat, [weights[name].numel() for name in self.names])
        for name, part in zip(self.names, parts, strict=True):
            weights[name].copy_(part.view_as(weights[name]))

    def restart(self, weights: Weights) -> None:
        """Takes ``weights`` for what is agreed on."""
        self.outer, self.targets, self.arriving = self.gather(weights), 0.0, None


def cut(weights: Weights, *, num_fragments: int) -> list[Fragment]:
    """Neighbouring parameters together, about equal numbers of elements; a fragment may be empty."""
    owners = assign_files([weight.numel() for weight in weights.values()], num_files=num_fragments)
    fragments = []
    for number in range(num_fragments):
        names = [name for name, owner in zip(weights, owners, strict=True) if owner == number]
        some = next(iter(weights.values()))
        fragment = Fragment(
            names=names, outer=some.new_zeros(0, device="cpu"), velocity=some.new_zeros(0, device="cpu")
        )
        fragment.restart(weights)
        fragment.velocity = torch.zeros_like(fragment.outer)
        fragments.append(fragment)
    return fragments


class Outer:
    """SGD with Nesterov momentum on the mean of what the replicas moved: ``outer - replica``.

    Args:
        weights: the tensors that the replica trains, to be read and overwritten.
        group: of the ranks that hold the same part of each replica.
        keep_local: share of a replica's own weights that stays when a fragment arrives late.
    """

    def __init__(
        self,
        weights: Callable[[], Weights],
        *,
        rounds: Rounds,
        group: dist.ProcessGroup,
        exchange: Exchange,
        lr: float,
        momentum: float,
        keep_local: float,
    ) -> None:
        self.weights = weights
        self.rounds = rounds
        self.group = group
        self.exchange = exchange
        self.lr = lr
        self.momentum = momentum
        self.keep_local = keep_local if rounds.overlap else 0.0
        self.fragments = cut(weights(), num_fragments=rounds.num_fragments)
        self.done = 0
        self.settled = True
        """Whether all replicas hold the same weights."""
        self.own: list[Tensor] | None = None
        """This replica's weights while others are shown in their place."""
        self.waited = 0.0
        self.moved = 0.0

    def step_done(self, done: int, *, targets: float) -> None:
        """The replica has learnt from ``targets`` more; ends and begins the exchanges that are due."""
        self.done, self.settled = done, self.rounds.settled(done)
        for fragment in self.fragments:
            fragment.targets += targets
        if self.rounds.overlap:
            self._arrive(self.rounds.arriving(done))
        self._leave(self.rounds.leaving(done))
        if not self.rounds.overlap:
            self._arrive(self.rounds.arriving(done))

    def _leave(self, numbers: Sequence[int]) -> None:
        weights = self.weights() if numbers else {}
        for fragment in [self.fragments[number] for number in numbers]:
            moved = fragment.outer - fragment.gather(weights)
            fragment.arriving = self.exchange.start(moved, weight=fragment.targets)
            fragment.targets = 0.0

    def _arrive(self, numbers: Sequence[int]) -> None:
        weights = self.weights() if numbers else {}
        for fragment in [self.fragments[number] for number in numbers]:
            if fragment.arriving is None:  # it left before training was taken up on other terms
                continue
            began = time.perf_counter()
            moved = fragment.arriving.result()
            self.waited += time.perf_counter() - began
            self.moved = moved.norm().item()
            fragment.arriving = None
            fragment.velocity.mul_(self.momentum).add_(moved)
            fragment.outer.add_(moved, alpha=-self.lr).add_(fragment.velocity, alpha=-self.lr * self.momentum)
            kept = torch.lerp(fragment.outer, fragment.gather(weights), self.keep_local)
            fragment.scatter(kept, weights)

    def measures(self) -> dict[str, float]:
        """Seconds that training waited for exchanges since the last call, and how far the last one moved."""
        waited, self.waited = self.waited, 0.0
        return {"exchange_wait": waited, "moved": self.moved}

    def show(self, flats: Sequence[Tensor]) -> None:
        """Puts ``flats`` in place of the weights, for a look, until `hide`."""
        weights = self.weights()
        if self.own is None:
            self.own = [fragment.gather(weights) for fragment in self.fragments]
        for fragment, flat in zip(self.fragments, flats, strict=True):
            fragment.scatter(flat, weights)

    def show_mean(self) -> None:
        """Shows the mean of the replicas' weights: what they would agree on without an outer optimizer."""
        if self.settled or self.own is not None:
            return
        weights = self.weights()
        self.show([mean_over(self.group, f.gather(weights), weight=f.targets) for f in self.fragments])

    def hide(self) -> None:
        """Puts this replica's own weights back."""
        if self.own is not None:
            self.show(self.own)
            self.own = None

    def restart(self) -> None:
        """Takes this rank's weights, which are those of all others, for what is agreed on."""
        weights = self.weights()
        for fragment in self.fragments:
            fragment.restart(weights)
        self.settled = True
