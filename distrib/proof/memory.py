"""Live tensors of one step by what they are for, whatever engine holds them."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from distrib.proof.memory_parts import PARTS


class MemoryWatch:
    """Takes the parts of memory during one optimizer step.

    Attributes:
        parts: bytes by `PARTS`; empty where no torch optimizer took a step.
    """

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around one step. Slows it down: it is not one to be timed."""
        saved = SavedTensors()
        hook = register_optimizer_step_pre_hook(self._at_optimizer)
        try:
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                yield
        finally:
            hook.remove()
        if self.parts:
            self.parts["activations"] = saved.peak
            self.parts = {part: self.parts[part] for part in PARTS}

    def _at_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An engine may update one group at a time: the call that has the most in its hands counts."""
        found = live_parts(optimizer)
        if not self.parts or found["other"] < self.parts["other"]:
            self.parts = found


class SavedTensors:
    """Counts what autograd keeps for backward, each storage once and parameters not at all."""

    def __init__(self) -> None:
        self._uses: Counter[int] = Counter()
        self._live = 0
        self.peak = 0

    def pack(self, tensor: Tensor) -> _Kept:
        """Called by autograd for every tensor it keeps."""
        base = tensor._base if tensor._base is not None else tensor
        storage = _local(tensor).untyped_storage()
        key, size = storage.data_ptr(), 0 if isinstance(base, nn.Parameter) else storage.nbytes()
        self._uses[key] += 1
        if self._uses[key] == 1:
            self._live += size
            self.peak = max(self.peak, self._live)
        return _Kept(tensor, self, key=key, size=size)

    def unpack(self, kept: _Kept) -> Tensor:
        """Called by autograd when backward needs it."""
        return kept.tensor

    def release(self, key: int, size: int) -> None:
        """One use less."""
        self._uses[key] -= 1
        if self._uses[key] == 0:
            self._live -= size


class _Kept:
    """A kept tensor; its end says that autograd has let go of it."""

    def __init__(self, tensor: Tensor, owner: SavedTensors, *, key: int, size: int) -> None:
        self.tensor, self._owner, self._key, self._size = tensor, owner, key, size

    def __del__(self) -> None:
        self._owner.release(self._key, self._size)


def live_parts(optimizer: Optimizer) -> dict[str, int]:
    """Bytes of every tensor that Python can reach, each storage once, under the first part that it fits."""
    objects = gc.get_objects()
    weights = [p for o in objects if _is_a(o, nn.Module) for p in _own_weights(o)]
    updated = [p for group in optimizer.param_groups for p in group["params"]]
    slots = [value for state in optimizer.state.values() for value in _tensors(state)]
    gradients = [p.grad for p in [*weights, *updated] if p.grad is not None]
    found = {
        "parameters": weights,
        "gradients": gradients,
        "optimizer": [*slots, *updated],
        "other": [o for o in objects if _is_a(o, Tensor)],
    }
    seen: set[int] = set()
    return {part: sum(_new_bytes(tensors, seen)) for part, tensors in found.items()}


def _own_weights(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
            yield from _tensors(vars(tensor))  # a shard that an engine hangs on its parameter


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if _is_a(value, Tensor)]


def _is_a(candidate: object, kind: type) -> bool:
    """By type: ``isinstance`` also asks for ``__class__``, which proxies answer with side effects."""
    return issubclass(type(candidate), kind)


def _new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> Iterator[int]:
    for tensor in map(_local, tensors):
        if tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.nbytes()


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a distributed tensor."""
    return getattr(tensor, "_local_tensor", tensor)
