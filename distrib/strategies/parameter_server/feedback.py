"""Error feedback: what a push has left out of a gradient is added to the next one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distrib.parallel.state import entry
from distrib.state import StateReader, StateWriter
from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.vectors import Vectors

KEPT = "topk"


class Feedback:
    """One worker's errors (Stich et al. 2018, arXiv:1809.07599, algorithm 1, on gradients as in Aji and
    Heafield 2017, arXiv:1704.05021).

    What is sent and what is kept add up to the gradient and what was kept before, to the bit. Of a bucket
    that is not finite nothing is kept, as the step is one that is skipped: the errors stay as they were.
    What other workers have sent in such a step is lost with it.

    Args:
        worker: this one's number, of ``num_workers``.
    """

    def __init__(
        self, layout: Layout, parameters: Mapping[str, nn.Parameter], *, worker: int, num_workers: int
    ) -> None:
        self._names = list(parameters)
        self._errors = Vectors(layout, parameters)
        self._next: dict[int, Tensor] = {}
        """By bucket, the errors after the push under way, which may not count."""
        self._worker, self._num_workers = worker, num_workers

    def give_back(self, number: int, vector: Tensor) -> Tensor:
        """Adds a bucket's errors to its gradient; returns a copy of the sum."""
        return vector.add_(self._errors.vectors[number]).clone()

    def keep(self, number: int, whole: Tensor, sent: Tensor) -> None:
        """Keeps what was not ``sent`` of a bucket that `give_back` made ``whole``, which is used up."""
        if bool(torch.isfinite(sent).all()):
            self._next[number] = whole.sub_(sent)

    def finish(self, *, counts: bool) -> None:
        """The push is over; where it does not count, what it kept does not either."""
        for number, errors in self._next.items():
            if counts:
                self._errors.vectors[number].copy_(errors)
        self._next = {}

    @property
    def _folder(self) -> str:
        return f"{KEPT}/workers-{self._num_workers}/{self._worker}/"

    def save(self, writer: StateWriter) -> None:
        """Writes this worker's errors by their parameters' names, into a file of its own."""
        errors = [entry(self._folder + name, self._errors.view(name)) for name in self._names]
        writer.write_alone("strategy", errors, file=f"{KEPT}-{self._worker}")

    def load(self, reader: StateReader) -> None:
        """Takes what this worker of as many wrote, however buckets and servers were; else starts anew."""
        self._errors.clear()
        saved = reader.names("strategy")
        for name in self._names:
            if self._folder + name in saved:
                self._errors.hold(name, reader.read("strategy", self._folder + name))
