"""What a worker sends of its gradient where that is less than all of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from distrib.state import StateReader, StateWriter
from distrib.strategies.parameter_server.feedback import Feedback
from distrib.strategies.parameter_server.packing import Packing
from distrib.strategies.parameter_server.vectors import Vectors


class Outbox:
    """Packs buckets of ``gradients``, which are left as what has been sent of them."""

    def __init__(self, packing: Packing, gradients: Vectors, feedback: Feedback | None) -> None:
        self._packing, self._gradients, self._feedback = packing, gradients, feedback
        self._gives_back = False

    def begin(self, *, targets: int) -> None:
        """A step begins, of which this worker has so many targets.

        Without any its gradient is zero, and a mode may not look at it: what was kept stays for the next.
        """
        self._gives_back = targets > 0

    def messages(self, number: int, cuts: Sequence[slice]) -> list[Tensor]:
        """A complete bucket, one message per run, in the host's memory."""
        vector = self._gradients.vectors[number]
        if self._feedback is None or not self._gives_back:
            return [self._packing.pack(vector[cut]).cpu() for cut in cuts]
        whole = self._feedback.give_back(number, vector)
        messages = [self._packing.pack(vector[cut]).cpu() for cut in cuts]
        self._feedback.keep(number, whole, vector)
        return messages

    def finish(self, *, counts: bool) -> None:
        """The step was answered; not ``counts``: it is run again, and what was kept is as before it."""
        if self._feedback is not None:
            self._feedback.finish(counts=counts)

    def also_sent(self, names: Collection[str]) -> set[str]:
        """Those of these parameters, without a gradient in this step, of which something kept was sent."""
        return {name for name in names if bool(self._gradients.view(name).any())}

    def save(self, writer: StateWriter) -> None:
        """Hands over what was kept."""
        if self._feedback is not None:
            self._feedback.save(writer)

    def load(self, reader: StateReader) -> None:
        """Takes what was kept, where it was by as many workers."""
        if self._feedback is not None:
            self._feedback.load(reader)
