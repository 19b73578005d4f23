"""Gradients summed over the ranks by Horovod, each sent off as soon as backward has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distrib.errors import ConfigError
from distrib.parallel.hooks import on_gradients


class Exchange:
    """Starts an all-reduce for each gradient that backward completes; Horovod fuses what is ready.

    What `horovod.torch.DistributedOptimizer` does, without its fixed number of backward passes:
    that number is equal on all ranks and in all steps there, and here it need not be.

    Args:
        parameters: by plain name; the same names on every rank.
        op: ``sum``, ``average`` or ``adasum``.
        compression: ``none`` or ``fp16``.
        find_unused_parameters: also ask in every step whether any rank has a gradient at all.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        op: str,
        compression: str,
        find_unused_parameters: bool,
    ) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self._parameters = dict(parameters)
        self._op = {"sum": hvd.Sum, "average": hvd.Average, "adasum": hvd.Adasum}[op]
        self._compression = getattr(hvd.Compression, compression)
        self._find_unused = find_unused_parameters
        self._holds = False
        self._under_way: dict[str, tuple[int, torch.dtype | None]] = {}
        on_gradients(self._parameters, self._on_gradient)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Gradients only accumulate in here."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def finish(self) -> None:
        """Waits until every ``.grad`` is the same on all ranks. Collective.

        Raises `ConfigError` for a parameter without a gradient, unless those are looked for.
        """
        is_used = self._send_used() if self._find_unused else None
        for name, parameter in self._parameters.items():
            if name not in self._under_way:
                self._send_late(name, parameter)
        for name, (handle, context) in self._under_way.items():
            self._receive(self._parameters[name], self._hvd.synchronize(handle), context)
        self._under_way.clear()
        if is_used is not None:
            self._drop_unused(self._hvd.synchronize(is_used))

    def forget(self) -> None:
        """Gives up the gradients that are under way: who they are exchanged with is gone."""
        self._under_way.clear()

    def _on_gradient(self, name: str, parameter: Tensor) -> None:
        if not self._holds and parameter.grad is not None:
            self._send(name, parameter.grad)

    def _send(self, name: str, gradient: Tensor) -> None:
        sent, context = self._compression.compress(gradient.contiguous())
        handle = self._hvd.allreduce_async_(sent, name=f"gradient.{name}", op=self._op)
        self._under_way[name] = handle, context

    def _send_late(self, name: str, parameter: nn.Parameter) -> None:
        """What the last microbatch gave no gradient: an earlier one did, or another rank's may."""
        if parameter.grad is None:
            if not self._find_unused:
                remedy = f"parameter '{name}' got no gradient in this step; true lets that be"
                raise ConfigError("strategy.find_unused_parameters", "false", remedy)
            parameter.grad = torch.zeros_like(parameter)
        self._send(name, parameter.grad)

    def _receive(self, parameter: nn.Parameter, total: Tensor, context: torch.dtype | None) -> None:
        total = self._compression.decompress(total, context)
        if parameter.grad is not None and total.data_ptr() != parameter.grad.data_ptr():
            parameter.grad.copy_(total)

    def _send_used(self) -> int:
        used = [parameter.grad is not None for parameter in self._parameters.values()]
        flags = torch.tensor(used, dtype=torch.int32)
        handle: int = self._hvd.allreduce_async_(flags, name="used", op=self._hvd.Sum)
        return handle

    def _drop_unused(self, num_ranks: Tensor) -> None:
        """What no rank used has no gradient, so that the optimizer leaves it as in one process."""
        for parameter, used in zip(self._parameters.values(), num_ranks.tolist(), strict=True):
            if not used:
                parameter.grad = None
