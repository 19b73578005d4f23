"""Reduce-scatter that sends no more than it must, for transports whose own sends twice as much.

gloo's reduce-scatter sends 2.00 times the least, (N-1)/N of the tensor per rank; a ring of
point-to-point messages sends 1.00 times (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


def reduce_scatter(output: Tensor, input: Tensor, *, group: dist.ProcessGroup) -> None:
    """The sum over ranks of this rank's part of ``input``, in ``output``.

    ``input`` is as long as ``group.size()`` outputs and is used up: the partial sums grow in it, so
    that nothing else is allocated. Blocks until the sum is there.
    """
    rank, size = group.rank(), group.size()
    parts = input.view(size, -1)
    for turn in range(1, size):
        # The part of rank r starts at r + 1 and comes round to r last.
        sent, received = parts[(rank - turn) % size], parts[(rank - turn - 1) % size]
        sending = dist.isend(sent, group=group, group_dst=(rank + 1) % size)
        dist.recv(output, group=group, group_src=(rank - 1) % size)
        received += output.view_as(received)
        assert sending is not None
        sending.wait()
    output.view(-1).copy_(parts[rank])


class RingReduceScatter(ReduceScatter):
    """`reduce_scatter` for ``FSDPModule.set_custom_reduce_scatter``: sums, and nothing but sums."""

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """Done when it returns, ``async_op`` or not; so there is no work to wait for."""
        if op != dist.ReduceOp.SUM:
            raise ValueError(f"a ring adds up; it does not do {op}")
        reduce_scatter(output_tensor, input_tensor, group=group)
