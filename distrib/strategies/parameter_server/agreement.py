"""How the servers agree on a step: whose gradients are in it, and how long the gradient is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from distrib.strategies.parameter_server.session import Session


class Agreement:
    """A star of sessions: the first server hears the others and answers.

    Servers may disagree about a worker that died while it pushed: what all of them have in whole counts.

    Args:
        sessions: the first server's with all others; every other one's with the first.
    """

    def __init__(self, sessions: Sequence[Session], *, leads: bool, num_workers: int) -> None:
        self._sessions, self._leads, self._num_workers = sessions, leads, num_workers

    def settle(
        self, ranks: Collection[int], *, squared_norm: Callable[[Collection[int]], float]
    ) -> tuple[list[int], float]:
        """Whose pushes all servers have, and the squared norm of the whole of their sum.

        Args:
            ranks: the workers whose pushes this server has.
            squared_norm: of this server's part of the sum of some workers' pushes.
        """
        while True:
            square = squared_norm(ranks)
            agreed, total = self._exchange(self._vector(ranks, square), square)
            if agreed is not None:
                return sorted(agreed), total
            ranks = [rank for rank in ranks if self._common[rank]]

    def _vector(self, ranks: Collection[int], square: float) -> Tensor:
        vector = torch.zeros(self._num_workers + 1, dtype=torch.float64)
        vector[list(ranks)] = 1.0
        vector[-1] = square
        return vector

    def _exchange(self, ours: Tensor, square: float) -> tuple[list[int] | None, float]:
        """The agreed ranks and the total; None where the servers have to count anew."""
        answer = self._lead(ours) if self._leads else self._follow(ours)
        self._common = answer[:-1] > 0
        unanimous = bool(answer[:-1].eq(1).logical_or(answer[:-1].eq(0)).all())
        return (self._common.nonzero().flatten().tolist() if unanimous else None), answer[-1].item()

    def _lead(self, ours: Tensor) -> Tensor:
        rows = [ours, *(session.receive(torch.empty_like(ours)) for session in self._sessions)]
        table = torch.stack(rows)
        answer = torch.cat([table[:, :-1].amin(0), table[:, -1].sum().view(1)])
        if not torch.equal(table[:, :-1].amin(0), table[:, :-1].amax(0)):
            answer[:-1] *= 2.0  # not 1: count anew, over those alone
        for session in self._sessions:
            session.settle()  # it has the answer before
            session.send(answer)
        return answer

    def _follow(self, ours: Tensor) -> Tensor:
        self._sessions[0].send(ours)
        answer = self._sessions[0].receive(torch.empty_like(ours))
        self._sessions[0].settle()
        return answer
