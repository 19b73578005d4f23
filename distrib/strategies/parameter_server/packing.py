"""What a push carries of a gradient: half of its bits, or its largest elements.

A push has one message per bucket and server, about that server's run of the bucket. Both sides know its
size from the run's.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

Compression = Literal["none", "bf16", "fp16", "topk"]

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
INDEX = torch.int32
"""Places within a run: one of 2^31 elements would take 8 GiB of a single server's memory."""


class Packing(Protocol):
    """One way of sending a run."""

    loses: bool
    """Whether it leaves elements out, which are then to be added to the next gradient."""

    def inbox(self, run: Tensor) -> Tensor:
        """What the message about a run of this size is received into."""

    def pack(self, run: Tensor) -> Tensor:
        """The message; ``run`` is left as what it says."""

    def unpack(self, message: Tensor, run: Tensor) -> None:
        """Makes ``run`` what the message says."""


class Half:
    """Every element in 16 bits, rounded to the nearest."""

    loses = False

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def inbox(self, run: Tensor) -> Tensor:
        return torch.empty_like(run, dtype=self._dtype)

    def pack(self, run: Tensor) -> Tensor:
        message = run.to(self._dtype)
        run.copy_(message)
        return message

    def unpack(self, message: Tensor, run: Tensor) -> None:
        run.copy_(message)


class TopK:
    """The elements of largest absolute value, one at least: first the values, then their places.

    NaN counts as the largest of all, so that what is not finite always arrives.

    Args:
        share: of a run's elements.
    """

    loses = True

    def __init__(self, *, share: float) -> None:
        self._share = share

    def count(self, run: Tensor) -> int:
        """Elements that are sent of a run."""
        return math.ceil(self._share * run.numel())

    def inbox(self, run: Tensor) -> Tensor:
        return torch.empty(self.count(run) * (run.element_size() + INDEX.itemsize), dtype=torch.uint8)

    def pack(self, run: Tensor) -> Tensor:
        places = run.abs().topk(self.count(run), sorted=False).indices
        values = run[places]
        run.zero_()
        run[places] = values
        return torch.cat([values.view(torch.uint8), places.to(INDEX).view(torch.uint8)])

    def unpack(self, message: Tensor, run: Tensor) -> None:
        end = self.count(run) * run.element_size()
        run.zero_()
        run[message[end:].view(INDEX).long()] = message[:end].view(run.dtype)


def packing_of(compression: Compression, *, topk_share: float) -> Packing | None:
    """By the option's name; None: runs are sent as they are."""
    if compression == "none":
        return None
    return TopK(share=topk_share) if compression == "topk" else Half(HALVES[compression])
