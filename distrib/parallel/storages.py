"""Memory of tensors that is divided among the ranks and put together again under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from distrib.parallel.gather import gather_in_place


@dataclass(kw_only=True)
class Kept:
    """One storage that an operation of the build has made."""

    storage: StorageWeakRef
    size: int
    number: int = 0
    """The how many-th that was used, the same on all ranks; 0: it was only allocated."""
    share: Tensor | None = None
    """This rank's bytes while it is apart; of a blank one nothing is kept."""

    def open(self) -> torch.UntypedStorage | None:
        """The storage; None where no tensor uses it any more."""
        found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return found


def storages_of(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages among ``values``, and those that plain tensors are views of."""
    for value in tree_leaves(values):
        if isinstance(value, torch.UntypedStorage):
            yield value
        if not isinstance(value, Tensor) or is_traceable_wrapper_subclass(value):  # type: ignore[unreachable]
            continue
        if value.layout == torch.strided and value.device.type != "meta":
            yield value.untyped_storage()


def split(kept: Kept, storage: torch.UntypedStorage) -> None:
    """Leaves this rank's part alone."""
    if kept.number:
        length = -(-kept.size // dist.get_world_size())
        start = dist.get_rank() * length
        kept.share = torch.zeros(length, dtype=torch.uint8, device=storage.device)
        mine = _bytes(storage)[start : min(start + length, kept.size)]
        kept.share[: len(mine)] = mine
    storage.resize_(0)


def join(kept: Kept, storage: torch.UntypedStorage, *, is_read: bool) -> None:
    """Gives a storage its memory back and, where they will be read, its values. Collective then."""
    if kept.share is None or not is_read:
        storage.resize_(kept.size)
    else:
        _check_agreement(kept)
        storage.resize_(len(kept.share) * dist.get_world_size())
        parts = _bytes(storage).chunk(dist.get_world_size())
        parts[dist.get_rank()].copy_(kept.share)
        gather_in_place(parts)
    kept.share = None


def _check_agreement(kept: Kept) -> None:
    """Raises RuntimeError where another rank is about to put another tensor together."""
    ours = torch.tensor([kept.number, kept.size])
    all_ranks = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, ours)
    if any(not torch.equal(theirs, ours) for theirs in all_ranks):
        raise RuntimeError(
            "the ranks do not build the same model: they ask for tensors "
            f"{[theirs.tolist() for theirs in all_ranks]} (number, bytes); a build may depend on seed and "
            "configuration alone"
        )


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
