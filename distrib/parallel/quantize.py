"""Sums over ranks of numbers that are sent rounded: bfloat16, or int8 with a scale per block.

A sum goes in two messages, as in a ring all-reduce: every rank is sent its part of everyone's numbers,
adds them up in full precision, and sends the sum of its part to everyone. So a rank sends 2 (N-1)/N of
the encoded numbers whatever N is, and an element is rounded twice: by the rank that has it and by the
rank that adds it up. All ranks decode the same bytes and hold the same sum to the bit.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

Quantize = Literal["none", "bf16", "int8"]

BLOCK = 256
"""Numbers that share a scale: 4 bytes more for 256."""
LEVELS = 127
"""int8 stands for whole multiples of the block's largest absolute value / 127: off by half of one at most."""


def encode(values: Tensor, quantize: Quantize) -> Tensor:
    """A vector of whole blocks as bytes."""
    if quantize == "none":
        return values.view(torch.uint8)
    if quantize == "bf16":
        return values.to(torch.bfloat16).view(torch.uint8)
    blocks = values.to(torch.float32).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / LEVELS
    levels = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return torch.cat([levels.to(torch.int8).view(torch.uint8).view(-1), scales.view(-1).view(torch.uint8)])


def decode(message: Tensor, quantize: Quantize, *, dtype: torch.dtype) -> Tensor:
    """The opposite of `encode`, in ``dtype``."""
    if quantize == "none":
        return message.view(dtype)
    if quantize == "bf16":
        return message.view(torch.bfloat16).to(dtype)
    num_blocks = len(message) // (BLOCK + 4)
    levels, scales = message[: num_blocks * BLOCK], message[num_blocks * BLOCK :].clone()
    blocks = levels.view(torch.int8).view(-1, BLOCK) * scales.view(torch.float32).view(-1, 1)
    return blocks.view(-1).to(dtype)


def sum_over(group: dist.ProcessGroup, values: Tensor, *, quantize: Quantize) -> Tensor:
    """The sum of a CPU vector over the ranks of ``group``; the same bits on all of them."""
    if not len(values):
        return values
    size, dtype = group.size(), values.dtype
    part = -(-len(values) // (size * BLOCK)) * BLOCK
    padded = F.pad(values, (0, size * part - len(values))).view(size, part)
    sent = torch.cat([encode(row, quantize) for row in padded])
    received = torch.empty_like(sent)
    group.alltoall_base(received, sent, [], []).wait()
    parts = [decode(message, quantize, dtype=dtype) for message in received.chunk(size)]
    mine = encode(torch.stack(parts).sum(dim=0), quantize)
    everyone = mine.new_empty(size * len(mine))
    group._allgather_base(everyone, mine).wait()
    return torch.cat([decode(m, quantize, dtype=dtype) for m in everyone.chunk(size)])[: len(values)]


def mean_over(
    group: dist.ProcessGroup, values: Tensor, *, weight: float, quantize: Quantize = "none"
) -> Tensor:
    """The mean over the ranks of ``group``, each counting by its ``weight``; alike if all are 0."""
    total = torch.tensor([weight], dtype=torch.float64)
    group.allreduce([total]).wait()
    share = weight / total.item() if total.item() > 0 else 1 / group.size()
    return sum_over(group, values * share, quantize=quantize)
