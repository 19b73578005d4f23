"""Building a model of which no rank ever holds more than its share and what it is working on.

Every rank runs the whole build, each operation on whole tensors, in the order and with the generator of a
one-process build, so the values are the same to the bit whatever the model's code does. But a tensor that
has not been used for a while is taken apart: each rank keeps an equal part of its bytes, and the ranks put
it together again when an operation asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves

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

    The peak is a rank's share of the model, `WHOLE_BYTES` or the largest operation's tensors if that is more,
    and what ``place`` keeps. ``place`` is given a module whose parameters look whole; it splits them in any
    order that is the same on all ranks. Raises RuntimeError where ranks ask for different tensors.
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
    return placed


@dataclass(kw_only=True)
class _Kept:
    """One storage that an operation of the build has made."""

    number: int
    storage: StorageWeakRef
    size: int
    is_blank: bool
    """Whether nothing has been written to it."""
    share: Tensor | None = None
    """This rank's bytes while it is apart; of a blank one nothing is kept."""

    def open(self) -> torch.UntypedStorage | None:
        """The storage; None where no tensor uses it any more."""
        found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return found


class Shares(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, sees every operation, and keeps what the build has made whole or apart.

    Which of the two depends on the operations alone, never on when Python frees a tensor, so that all ranks
    agree. What nobody uses any more is forgotten when its turn comes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole: OrderedDict[int, _Kept] = OrderedDict()
        self._apart: dict[int, _Kept] = {}
        self._pinned: dict[int, _Kept] = {}
        self._whole_bytes = self._made = 0
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
            for storage in _storages(result):
                self._take(storage, is_blank=func in ALLOCATING)
        return result

    def _use(self, *asked: Any, overwritten: Any) -> None:
        """Makes whole what an operation is about to read or write."""
        used = set()
        for storage in _storages(asked):
            used.add(self._bring(storage, is_read=True))
        for storage in _storages(overwritten):
            kept = self._apart.get(storage._cdata)
            fills = kept is not None and overwritten.numel() * overwritten.element_size() == kept.size
            used.add(self._bring(storage, is_read=not fills))
        self._make_room(used)

    def _bring(self, storage: torch.UntypedStorage, *, is_read: bool) -> int:
        key: int = storage._cdata
        if (kept := self._apart.pop(key, None)) is not None:
            _join(kept, storage, is_read=is_read)
            self._whole[key] = kept
            self._whole_bytes += kept.size
        if (kept := self._whole.get(key)) is not None:
            self._whole.move_to_end(key)
            kept.is_blank = False
        return key

    def _take(self, storage: torch.UntypedStorage, *, is_blank: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        is_known = key in self._whole or key in self._apart or key in self._pinned
        if is_known or size < SMALL_BYTES or not storage.resizable():
            return  # one that cannot be resized is another's memory: a file's, mapped
        self._made += 1
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._whole[key] = _Kept(number=self._made, storage=weak, size=size, is_blank=is_blank)
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
            _split(kept, storage)
            self._apart[key] = kept

    def pin(self, tensor: Tensor) -> None:
        """Makes a tensor whole for good."""
        with _disable_current_modes():
            for storage in _storages(tensor):
                key = self._bring(storage, is_read=True)
                if (kept := self._whole.pop(key, None)) is not None:
                    self._pinned[key] = kept  # whose weak reference keeps the key from being used again
                    self._whole_bytes -= kept.size

    def finish(self) -> None:
        """Ends the taking of new tensors.

        Takes all apart if it has any: transformers makes missing weights in the order of a set, so which
        ones were the last may differ by rank.
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
                _join(kept, storage, is_read=True)
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


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages among ``values``, and those that plain tensors are views of."""
    for value in tree_leaves(values):
        if isinstance(value, torch.UntypedStorage):
            yield value
        if not isinstance(value, Tensor) or is_traceable_wrapper_subclass(value):  # type: ignore[unreachable]
            continue
        if value.layout == torch.strided and value.device.type != "meta":
            yield value.untyped_storage()


def _split(kept: _Kept, storage: torch.UntypedStorage) -> None:
    """Leaves this rank's part alone."""
    if not kept.is_blank:
        length = -(-kept.size // dist.get_world_size())
        start = dist.get_rank() * length
        kept.share = torch.zeros(length, dtype=torch.uint8, device=storage.device)
        mine = _bytes(storage)[start : min(start + length, kept.size)]
        kept.share[: len(mine)] = mine
    storage.resize_(0)


def _join(kept: _Kept, storage: torch.UntypedStorage, *, is_read: bool) -> None:
    """Gives a storage its memory back and, where they will be read, its values. Collective then."""
    if kept.share is None or not is_read:
        storage.resize_(kept.size)
    else:
        _check_agreement(kept)
        storage.resize_(len(kept.share) * dist.get_world_size())
        _gather(_bytes(storage), kept.share)
    kept.share = None


def _check_agreement(kept: _Kept) -> None:
    """Raises RuntimeError where another rank is about to put another tensor together."""
    ours = torch.tensor([kept.number, kept.size])
    all_ranks = ours.new_empty(2 * dist.get_world_size())
    _gather(all_ranks, ours)
    if (all_ranks.view(-1, 2) != ours).any():
        raise RuntimeError(
            f"the ranks do not build the same model: they ask for tensors {all_ranks.view(-1, 2).tolist()} "
            "(number, bytes); a build may depend on the seed and the configuration alone"
        )


def _gather(output: Tensor, share: Tensor) -> None:
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.13
    gather(output, share)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
