"""What a worker must be able to send again when a server's backup takes over, and to ask for anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.session import PULL, PUSH, Op, Session


@dataclass(frozen=True, kw_only=True)
class SentPush:
    """One step's gradients, to all servers."""

    step: int
    base: int
    """The version of the weights they were computed from."""
    vectors: Sequence[Tensor]
    """By bucket."""
    trailer: Tensor

    def copy(self) -> SentPush:
        """One that outlasts the step, whose vectors are used again."""
        return replace(self, vectors=[vector.clone() for vector in self.vectors])

    def send(self, session: Session, layout: Layout, *, server: int, op: Op) -> None:
        """Sends what is of one server's part, whole."""
        session.tell(op, self.step, self.base)
        for number, bucket in enumerate(layout.buckets):
            cut = bucket.cuts[server]
            if cut.start < cut.stop:
                session.start_send(self.vectors[number][cut], PUSH + 2 * number).wait()
        session.send(self.trailer)


def fetched(session: Session, like: Sequence[Tensor], layout: Layout, *, server: int) -> list[Tensor]:
    """A server's run of every bucket, as it is now; ``like``: whole buckets of that type."""
    session.tell(Op.FETCH)
    session.hear()
    parts = [torch.empty_like(like[number][b.cuts[server]]) for number, b in enumerate(layout.buckets)]
    arrivals = [
        session.start_receive(part, PULL + 2 * number) for number, part in enumerate(parts) if part.numel()
    ]
    for arrival in arrivals:
        arrival.wait()
    return parts
