"""What one server holds: its run of every bucket, and the optimizer's state of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from distrib.core import Job
from distrib.parallel.norm import total_norm
from distrib.parallel.state import fill_slots
from distrib.parallel.update import clip_and_update
from distrib.strategies.parameter_server.layout import Layout


class Part:
    """Weights in one vector, and an optimizer over its pieces.

    A piece keeps its parameter's number of dimensions, by which decay is decided, and its name.

    Args:
        weights: the fresh model's parameters by name.
    """

    def __init__(self, job: Job, layout: Layout, *, server: int, weights: Mapping[str, Tensor]) -> None:
        self.job = job
        self.layout, self.server = layout, server
        some = next(iter(weights.values()))
        self.vector = torch.empty(layout.length(server), dtype=some.dtype)
        self.pieces = {piece.name: piece for piece in layout.pieces[server]}
        self.parameters = {}
        for name, piece in self.pieces.items():
            held = self.vector[piece.place]
            held.copy_(weights[name].detach().view(-1)[piece.elements])
            self.parameters[name] = nn.Parameter(held.view([1] * (weights[name].ndim - 1) + [-1]))
        self.optimizer = job.build_optimizer(self.parameters.items())
        self._loaded: dict[str, dict[str, Tensor]] = {}

    def squared_norm(self, gradient: Tensor, *, touched: Collection[str]) -> float:
        """Of this part of a gradient, as exact as `distrib.parallel.norm`."""
        parts = [gradient[piece.place] for name, piece in self.pieces.items() if name in touched]
        return total_norm(parts).double().square().item() if parts else 0.0

    def update(self, gradient: Tensor, *, touched: Collection[str], norm: float, lr: float) -> bool:
        """One update by this part of a gradient whose whole norm is ``norm``; whether it was made.

        A parameter that nothing has ``touched`` has no gradient, and is left alone as torch would.
        """
        if not self.parameters:
            return math.isfinite(norm)
        for name, parameter in self.parameters.items():
            if name in touched:
                parameter.grad = gradient[self.pieces[name].place].view_as(parameter)
        given = [p.grad for p in self.parameters.values() if p.grad is not None]
        whole = torch.tensor(norm, dtype=torch.float64)
        limit = self.job.max_grad_norm
        _, updated = clip_and_update(self.optimizer, given, norm=whole, lr=lr, max_grad_norm=limit)
        return updated

    def slots(self) -> dict[str, dict[str, list[object]]]:
        """By parameter and slot: whether it is cut like the parameter, and its type."""
        return {
            name: {
                slot: [value.numel() == parameter.numel() and value.ndim > 0, str(value.dtype)]
                for slot, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            }
            for name, parameter in self.parameters.items()
        }

    def slot(self, name: str, slot: str) -> Tensor:
        """One slot of one piece."""
        value: Tensor = self.optimizer.state[self.parameters[name]][slot]
        return value

    def put_slot(self, name: str, slot: str, value: Tensor) -> None:
        """Keeps one slot of one piece until `finish_loading`."""
        whole = value.numel() == self.parameters[name].numel() and value.ndim > 0
        self._loaded.setdefault(name, {})[slot] = value.view_as(self.parameters[name]) if whole else value

    def finish_loading(self) -> None:
        """Gives the optimizer what `put_slot` kept, in place of what it had."""
        fill_slots(self._loaded, self.parameters.items(), self.optimizer)
        self._loaded = {}
