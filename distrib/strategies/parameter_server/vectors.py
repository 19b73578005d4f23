"""The memory that messages are sent from and received into."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distrib.strategies.parameter_server.layout import Layout


class Vectors:
    """One vector per bucket where the model is, and where gloo sends from."""

    def __init__(self, layout: Layout, parameters: Mapping[str, nn.Parameter]) -> None:
        some = next(iter(parameters.values()))
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._places = {
            name: (number, start)
            for number, bucket in enumerate(layout.buckets)
            for name, start in bucket.starts.items()
        }
        self.vectors = [
            torch.zeros(bucket.numel, dtype=some.dtype, device=some.device) for bucket in layout.buckets
        ]
        is_cpu = some.device.type == "cpu"
        self.host = self.vectors if is_cpu else [v.to("cpu").pin_memory() for v in self.vectors]

    def view(self, name: str) -> Tensor:
        """A parameter's elements, in its shape."""
        number, start = self._places[name]
        shape = self._shapes[name]
        return self.vectors[number][start : start + shape.numel()].view(shape)

    def hold(self, name: str, value: Tensor) -> None:
        """Copies a parameter's elements in."""
        self.view(name).copy_(value)

    def on_host(self, number: int) -> Tensor:
        """A bucket where it is sent from, up to date."""
        if self.host is not self.vectors:
            self.host[number].copy_(self.vectors[number])
        return self.host[number]

    def to_device(self, number: int) -> None:
        """Brings a bucket that has arrived to where the model is."""
        if self.host is not self.vectors:
            self.vectors[number].copy_(self.host[number], non_blocking=True)

    def clear(self) -> None:
        """Zeroes everything."""
        for vector in self.vectors:
            vector.zero_()
