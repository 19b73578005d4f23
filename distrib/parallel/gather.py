"""Putting a tensor together without a second one beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def gather_in_place(parts: Sequence[Tensor], *, group: dist.ProcessGroup | None = None) -> None:
    """Fills in the parts of the others: rank r has ``parts[r]``, which may be empty; the last may have none.

    As many bytes as an all-gather, which gloo makes in a tensor of its own and then copies.
    """
    for rank, part in enumerate(parts):
        if part.numel():
            dist.broadcast(part, group=group, group_src=rank)
