"""What a server makes of pushes, by mode."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from distrib.errors import LaunchError
from distrib.strategies.parameter_server.agreement import Agreement
from distrib.strategies.parameter_server.facts import Facts
from distrib.strategies.parameter_server.hall import Agreed, Hall, Result
from distrib.strategies.parameter_server.ledger import Ledger
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Push, Sender
from distrib.strategies.parameter_server.sharing import Sharing


class Update(ABC):
    """Makes one update of a part and notes it in the hall."""

    def __init__(self, part: Part, hall: Hall, ledger: Ledger) -> None:
        self._part, self._hall, self._ledger = part, hall, ledger
        self.facts = Facts(num_workers=hall.num_workers)

    @abstractmethod
    def __call__(self, pushes: list[Push]) -> None:
        """By pushes that are due."""

    def repeat(self, told: Tensor, *, touched: Collection[str], norm: float, lr: float) -> None:
        """On a backup: makes the update that the `Ledger` was told."""
        self._part.update(told, touched=touched, norm=norm, lr=lr)

    def _count(self, pushes: list[Push], *, version: int) -> None:
        for push in pushes:
            self.facts.staleness(version - push.base)


class Summed(Update):
    """By the sum of the workers' gradients, added up in the order of their ranks.

    Where a worker is missing, its targets are too: the sum is divided by those that are there.

    Args:
        shares: has a step run again instead where somebody who has a share of it is missing; None: no step
            ever is, or another server says so.
    """

    def __init__(
        self, part: Part, hall: Hall, ledger: Ledger, *, agreement: Agreement, shares: Sharing | None
    ) -> None:
        super().__init__(part, hall, ledger)
        self._agreement, self._shares = agreement, shares
        self._sum = torch.empty_like(part.vector)
        self._summed: list[Sender] = []
        """The workers whose gradients are in it."""

    def __call__(self, pushes: list[Push]) -> None:
        by_sender = {push.sender: push for push in pushes}
        touched = frozenset[str]().union(*(push.touched for push in pushes))

        version, redone = at = pushes[0].at

        def count(senders: Collection[Sender]) -> Agreed:
            ours = Agreed(step=version, redone=redone, senders=sorted(senders))
            if self._shares is not None and self._shares.lacks({rank for rank, _ in senders}):
                return replace(ours, redo=True)
            self._add_up([by_sender[sender] for sender in ours.senders])
            return replace(ours, square=self._part.squared_norm(self._sum, touched=touched))

        agreed = self._agreement.settle(by_sender.keys(), at=at, count=count)
        if agreed.redo:
            self._redo()
            return
        used = agreed_on(agreed, by_sender)
        if self._summed != agreed.senders:  # it was agreed on before this rank took over
            self._add_up(used)
        norm, loss = math.sqrt(agreed.square), sum(push.loss for push in used) * self._factor(used)
        lr = self._part.job.lr(version)
        if not used:
            touched, norm = frozenset(), math.nan  # no update, on the backup neither
        with self._hall.told(), self._ledger.update(self._sum, touched=touched, norm=norm, lr=lr):
            updated = self._part.update(self._sum, touched=touched, norm=norm, lr=lr)
            self._count(used, version=version)
            self.facts.targets(sum(push.targets for push in used), due=pushes[0].step_targets)
            self._hall.finish(pushes, Result(norm=norm, loss=loss, updated=updated))

    def _redo(self) -> None:
        with self._hall.told():
            self.facts.redone += 1
            self._hall.redo()
            self._ledger.keep()

    def _add_up(self, pushes: list[Push]) -> None:
        self._summed = [push.sender for push in pushes]
        if not pushes:
            self._sum.zero_()
            return
        self._sum.copy_(pushes[0].vector)
        for push in pushes[1:]:
            self._sum += push.vector
        if (factor := self._factor(pushes)) != 1.0:
            self._sum *= factor

    def _factor(self, pushes: list[Push]) -> float:
        """What makes the gradient of some workers that of the mean over their own targets."""
        if not pushes or len(pushes) == self._hall.num_workers:
            return 1.0
        return pushes[0].step_targets / max(sum(push.targets for push in pushes), 1.0)


def agreed_on(agreed: Agreed, by_sender: Mapping[Sender, Push]) -> list[Push]:
    """The pushes of an update. Raises `LaunchError` where one was lost with its worker and a server."""
    if gone := [rank for rank, life in agreed.senders if (rank, life) not in by_sender]:
        raise LaunchError(
            f"the gradient of worker rank {gone[0]} in step {agreed.step} is in the other servers' parts and "
            "not in this one: it was lost together with the server that this rank has taken over from"
        )
    return [by_sender[sender] for sender in agreed.senders]


class Alone(Update):
    """By one worker's gradient, the mean over its own targets.

    Its learning rate is the step's times its share of the step's targets, so that the pushes of one step
    together move the weights as far as one synchronous update.

    Args:
        damping: divides the rate by how many times more stale a push is than when all workers are
            equally fast: then each push misses those of all others.
    """

    def __init__(self, part: Part, hall: Hall, ledger: Ledger, *, damping: bool) -> None:
        super().__init__(part, hall, ledger)
        self._damping = damping

    def __call__(self, pushes: list[Push]) -> None:
        (push,) = pushes
        share = push.targets / push.step_targets
        with self._hall.told():
            version = self._hall.version or 0
            self._count(pushes, version=version)
            if share:
                self._update(push, share, version - push.base)
            else:
                self._hall.finish(pushes, Result())
                self._ledger.keep()

    def _update(self, push: Push, share: float, staleness: int) -> None:
        norm = push.norm / share
        lr = self._part.job.lr(push.step) * share
        if self._damping:
            lr /= max(1.0, (staleness + 1) / len(self._hall.seats))
        push.vector /= share
        with self._ledger.update(push.vector, touched=push.touched, norm=norm, lr=lr):
            updated = self._part.update(push.vector, touched=push.touched, norm=norm, lr=lr)
            self._hall.finish([push], Result(norm=norm, loss=push.loss / share, updated=updated))


class Mean(Update):
    """The mean of the workers' parameters, in which each counts by the targets it has learnt from."""

    def __init__(self, part: Part, hall: Hall, ledger: Ledger, *, agreement: Agreement) -> None:
        super().__init__(part, hall, ledger)
        self._agreement = agreement

    def __call__(self, pushes: list[Push]) -> None:
        by_sender = {push.sender: push for push in pushes}

        def count(senders: Collection[Sender]) -> Agreed:
            return Agreed(step=pushes[0].step, senders=sorted(senders))

        agreed = self._agreement.settle(by_sender.keys(), at=pushes[0].at, count=count)
        used = [push for push in agreed_on(agreed, by_sender) if push.targets]
        total = sum(push.targets for push in used)
        with self._hall.told():
            if used:
                self._part.vector.zero_()
            for push in used:
                self._part.vector.add_(push.vector, alpha=push.targets / total)
            with self._ledger.update(self._part.vector):
                self._count(pushes, version=pushes[0].step)
                self._hall.finish(pushes, Result())

    def repeat(self, told: Tensor, *, touched: Collection[str], norm: float, lr: float) -> None:
        self._part.vector.copy_(told)


class Centre(Update):
    """The centre moved by what a worker has sent, which has moved by as much towards it."""

    def __call__(self, pushes: list[Push]) -> None:
        (push,) = pushes
        with self._hall.told(), self._ledger.update(push.vector):
            self._part.vector += push.vector
            self._count(pushes, version=self._hall.version or 0)
            self._hall.finish(pushes, Result())

    def repeat(self, told: Tensor, *, touched: Collection[str], norm: float, lr: float) -> None:
        self._part.vector += told
