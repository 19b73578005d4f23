"""Building a model of which no rank ever holds more than its share and what it is working on.

Every rank runs the whole build, each operation on whole tensors, in the order and with the generator of a
one-process build, so the values are the same to the bit whatever the model's code does. But a tensor that
has not been used for a while is taken apart: each rank keeps an equal part of its bytes, and the ranks put
it together again when an operation asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
)

from distrib.parallel.allocator import give_back
from distrib.parallel.storages import Kept, join, split, storages_of

T = TypeVar("T")

WHOLE_BYTES = 16 * 2**20
"""Of tensors that stay whole, the last ones used. A model below it is built as in one process."""
SMALL_BYTES = 2**16
"""Tensors below it are never taken apart: norms and biases, which would cost a message each."""

aten = torch.ops.aten
ALLOCATING = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
"""Operations whose result has no values yet."""
OVERWRITING = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.copy_.default,
}
"""Operations that do not ask what was in their first argument before."""
RENAMING = {aten.detach.default, aten.alias.default}
"""Operations that do not touch memory. Other views do: torch checks that they are within it."""
DIRECT = {
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__deepcopy__,
    Tensor.__dlpack__,
    Tensor.__reduce_ex__,
    Tensor.data_ptr,
}
"""Ways to a tensor's memory that pass by torch's operations."""


def build_in_shares(build: Callable[[], nn.Module], *, place: Callable[[nn.Module], T]) -> T:
    """``place(build())`` on every rank of the default process group, which must all build the same.

    A rank needs its share of the model, `WHOLE_BYTES` or the largest operation's tensors if that is more, and
    what ``place`` keeps. The peak is higher by what the allocator has not given back: under fsdp on 4 ranks
    0.72 of a model of 187 M parameters whose largest tensor is 0.18 of it (`benchmarks.building_memory`).

    ``place`` is given a module whose parameters look whole, and are, from when an operation first touches
    them. It touches them in the same order on all ranks and drops what it has split.
    Raises RuntimeError where ranks ask for different tensors.
    """
    if dist.get_world_size() == 1:
        return place(build())
    shares = Shares()
    with shares, _Direct(shares):
        module = build()
    shares.finish()
    with shares:
        placed = place(module)
    del module
    shares.put_together()
    give_back()  # or the engine's own copies come on top of what is free
    return placed


class Shares(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, sees every operation, and keeps what the build has made whole or apart.

    Which of the two depends on the operations alone, never on when Python frees a tensor, so that all ranks
    agree. What nobody uses any more is forgotten when its turn comes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole: OrderedDict[int, Kept] = OrderedDict()
        self._apart: dict[int, Kept] = {}
        self._pinned: dict[int, Kept] = {}
        self._whole_bytes = self._used = self._freed = 0
        self._is_building = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in RENAMING:
            target = args[0] if func in OVERWRITING else None
            rest = args[1:] if func in OVERWRITING else args
            self._use(rest, kwargs, overwritten=target)
        result = func(*args, **kwargs)
        if self._is_building:
            for storage in storages_of(result):
                self._take(storage, is_blank=func in ALLOCATING)
        return result

    def _use(self, *asked: Any, overwritten: Any) -> None:
        """Makes whole what an operation is about to read or write."""
        used = set()
        for storage in storages_of(asked):
            used.add(self._bring(storage, is_read=True))
        for storage in storages_of(overwritten):
            kept = self._apart.get(storage._cdata)
            fills = kept is not None and overwritten.numel() * overwritten.element_size() == kept.size
            used.add(self._bring(storage, is_read=not fills))
        if self._is_building:  # what splits them may do less on a rank that gets nothing of a tensor
            self._make_room(used)

    def _bring(self, storage: torch.UntypedStorage, *, is_read: bool) -> int:
        key: int = storage._cdata
        if (kept := self._apart.pop(key, None)) is not None:
            join(kept, storage, is_read=is_read)
            self._whole[key] = kept
            self._whole_bytes += kept.size
        if (kept := self._whole.get(key)) is not None:
            self._whole.move_to_end(key)
            self._number(kept)
        return key

    def _number(self, kept: Kept) -> None:
        """By first use, not by allocation: transformers allocates missing weights in the order of a set."""
        if kept.number == 0:
            self._used += 1
            kept.number = self._used

    def _take(self, storage: torch.UntypedStorage, *, is_blank: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        is_known = key in self._whole or key in self._pinned
        if is_known or size < SMALL_BYTES or not storage.resizable():
            return  # one that is apart has no bytes; one that cannot be resized is a file's, mapped
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._whole[key] = kept = Kept(storage=weak, size=size)
        if not is_blank:
            self._number(kept)
        self._whole_bytes += size
        self._make_room({key})

    def _make_room(self, used: set[int]) -> None:
        """Takes apart what was used longest ago, down to `WHOLE_BYTES` and what is in use."""
        while self._whole_bytes > WHOLE_BYTES and (key := next(iter(self._whole))) not in used:
            self._part(key)

    def _part(self, key: int) -> None:
        kept = self._whole.pop(key)
        self._whole_bytes -= kept.size
        if (storage := kept.open()) is not None and storage.resizable():
            split(kept, storage)
            self._apart[key] = kept
        self._freed += kept.size
        if self._freed > WHOLE_BYTES:  # each left a hole between the shares, a quarter of a model in all
            give_back()
            self._freed = 0

    def pin(self, tensor: Tensor) -> None:
        """Makes a tensor whole for good."""
        with _disable_current_modes():
            for storage in storages_of(tensor):
                key = self._bring(storage, is_read=True)
                if (kept := self._whole.pop(key, None)) is not None:
                    self._pinned[key] = kept  # whose weak reference keeps the key from being used again
                    self._whole_bytes -= kept.size

    def finish(self) -> None:
        """Ends the taking of new tensors.

        Takes all apart if it has any: which were the last may differ by rank, as the order of a set does.
        """
        self._is_building = False
        while self._apart and self._whole:
            self._part(next(iter(self._whole)))

    def put_together(self) -> None:
        """Makes whole what is still in use: large buffers."""
        import gc

        gc.collect()  # so that all ranks find the same in use
        for kept in sorted(self._apart.values(), key=lambda kept: kept.number):
            if (storage := kept.open()) is not None:
                join(kept, storage, is_read=True)
        self._apart.clear()
        self._whole.clear()


class _Direct(TorchFunctionMode):
    """Pins a tensor whose memory is handed out: what others hold must not be taken away."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DIRECT:
            self._shares.pin(args[0])
        return func(*args, **(kwargs or {}))
