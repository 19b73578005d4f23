"""Adding up named sums over ranks in one message."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def flatten(sums: Mapping[str, Tensor]) -> Tensor:
    """All sums as one float64 vector, in the order of the names given."""
    parts = [value.detach().reshape(-1).to("cpu", torch.float64) for value in sums.values()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def unflatten(vector: Tensor, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flatten` for sums of the same names and shapes."""
    sizes = [value.numel() for value in sums.values()]
    pieces = torch.split(vector, sizes)
    return {name: piece.view(value.shape) for (name, value), piece in zip(sums.items(), pieces, strict=True)}


def all_reduce_sums(sums: Mapping[str, Tensor], *, device: torch.device) -> dict[str, Tensor]:
    """The sums over all ranks of the default process group: float64, on the CPU.

    The vector travels on ``device`` because NCCL moves nothing else.
    """
    vector = flatten(sums).to(device)
    dist.all_reduce(vector)
    return unflatten(vector.cpu(), sums)
