"""Means over replicas in a thread, while the replica trains on."""

from __future__ import annotations

from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

import torch.distributed as dist
from torch import Tensor

from distrib.parallel.quantize import Quantize, mean_over

CLOSE_SECONDS = 1.0
"""How long closing waits for an exchange whose other replicas may be gone."""

Request = tuple[Future[Tensor], Tensor, float]


class Exchange:
    """Averages vectors one after another, in the order in which they are given, which all ranks share.

    Its process group is its own, so that nothing else waits behind an exchange. The thread is a daemon:
    a process that ends early is not held up by replicas that do not answer.
    """

    def __init__(self, group: dist.ProcessGroup, *, quantize: Quantize) -> None:
        self._group = group
        self._quantize: Quantize = quantize
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="diloco", daemon=True)
        self._thread.start()

    def start(self, vector: Tensor, *, weight: float) -> Future[Tensor]:
        """The mean of ``vector`` over the replicas, each counting by its ``weight``, once it is there."""
        mean: Future[Tensor] = Future()
        self._requests.put((mean, vector, weight))
        return mean

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            mean, vector, weight = request
            try:
                mean.set_result(mean_over(self._group, vector, weight=weight, quantize=self._quantize))
            except Exception as error:  # noqa: BLE001 (raised again where the mean is asked for)
                mean.set_exception(error)

    def close(self) -> None:
        """Ends the thread; may be called twice."""
        self._requests.put(None)
        self._thread.join(timeout=CLOSE_SECONDS)
