"""What a worker receives from the servers: weights, in the order in which forward needs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.link import Link
from distrib.strategies.parameter_server.session import PULL, Op, Pending, Session
from distrib.strategies.parameter_server.spent import Spent
from distrib.strategies.parameter_server.vectors import Vectors


class Downlink:
    """Fills ``weights`` with what the servers send.

    Args:
        links: one per server, in order.
    """

    def __init__(self, layout: Layout, weights: Vectors, *, links: Sequence[Link], spent: Spent) -> None:
        self._layout, self._weights, self._links, self._spent = layout, weights, links, spent
        self._arrivals: dict[int, dict[int, Pending]] = {}
        """By bucket and server."""

    def expect(self, server: int, session: Session) -> None:
        """Posts the receipt of every bucket, so that a server's answer needs no further question."""
        for number, bucket in enumerate(self._layout.buckets):
            cut = bucket.cuts[server]
            if cut.start < cut.stop:
                arrival = session.start_receive(self._weights.host[number][cut], PULL + 2 * number)
                self._arrivals.setdefault(number, {})[server] = arrival

    def arrive(self, numbers: Sequence[int]) -> None:
        """Waits for buckets that are still on their way."""
        for number in numbers:
            if number not in self._arrivals:
                continue
            with self._spent.on("pull"):
                for server, arrival in list(self._arrivals[number].items()):
                    self._receive(server, arrival)
                del self._arrivals[number]
                self._weights.to_device(number)

    def settle(self) -> None:
        """Waits until all weights that were asked for are there."""
        self.arrive(range(len(self._layout.buckets)))

    def _receive(self, server: int, arrival: Pending) -> None:
        link = self._links[server]
        link.attempt(lambda session: arrival.wait())
        if link.error is not None:
            link.exchange(partial(self._receive_rest, server))

    def _receive_rest(self, server: int, session: Session) -> None:
        """Of a server that took over: its weights, where those of the lost one had not come yet."""
        waiting = [number for number, arrivals in self._arrivals.items() if server in arrivals]
        session.tell(Op.FETCH)
        session.hear()
        for number, bucket in enumerate(self._layout.buckets):
            part = torch.empty_like(self._weights.host[number][bucket.cuts[server]])
            if part.numel():
                session.start_receive(part, PULL + 2 * number).wait()
            if number in waiting:
                self._weights.host[number][bucket.cuts[server]] = part
        for number in waiting:
            del self._arrivals[number][server]
