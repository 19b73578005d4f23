"""Weights and optimizer state of a whole model under their plain names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distrib.state import Entry, StateReader, StateWriter


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by plain name; a tied one once, by its first name."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


def optimizer_slots(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """``<parameter name>/<slot>`` and its tensor, in the model's order."""
    for name, parameter in module.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{name}/{slot}", value


class Room:
    """Memory in which one tensor after another is put together; each is valid until the next.

    For tensors of their own, the allocator would keep much more than the largest: glibc gives freed memory
    back only beyond twice the largest block it has seen (up to 64 MiB), which training's are.
    """

    def __init__(self, size: int, *, device: torch.device) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)

    def tensor(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor with whatever values were there before."""
        return self._bytes[: num_elements * dtype.itemsize].view(dtype)


def entry(name: str, tensor: Tensor) -> Entry:
    """An entry for a tensor that this rank holds whole."""
    return Entry(name=name, shape=tensor.shape, dtype=tensor.dtype, read=partial(_identity, tensor))


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def save_replica(writer: StateWriter, module: nn.Module, optimizer: Optimizer) -> None:
    """Hands over a model that every rank holds whole, and its optimizer's state."""
    writer.write("model", [entry(name, tensor) for name, tensor in named_weights(module).items()])
    writer.write("optimizer", [entry(name, value) for name, value in optimizer_slots(module, optimizer)])


def load_replica(reader: StateReader, module: nn.Module, optimizer: Optimizer) -> None:
    """Copies a checkpoint's weights and optimizer state into place, one tensor at a time.

    Raises `CheckpointError` when the checkpoint is of another model.
    """
    load_weights(reader, module)
    load_optimizer(reader, module, optimizer)


def load_weights(reader: StateReader, module: nn.Module) -> None:
    """The weights alone. Raises `CheckpointError` when the checkpoint is of another model."""
    weights = named_weights(module)
    reader.check_model({name: tensor.shape for name, tensor in weights.items()})
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(reader.read("model", name))


def load_optimizer(reader: StateReader, module: nn.Module, optimizer: Optimizer) -> None:
    """Fills the optimizer's slots from a checkpoint."""
    names = sorted(reader.names("optimizer"))  # alike on all ranks, which will save in this order
    slots = {name: reader.read("optimizer", name).clone() for name in names}
    fill_optimizer(slots, module, optimizer)


def fill_optimizer(slots: Mapping[str, Tensor], module: nn.Module, optimizer: Optimizer) -> None:
    """Makes these the optimizer's slots, named as `optimizer_slots` does, each on its parameter's device."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in slots.items():
        name, slot = full_name.rsplit("/", 1)
        by_name.setdefault(name, {})[slot] = tensor
    fill_slots(by_name, module.named_parameters(), optimizer)


def fill_slots(
    by_name: Mapping[str, Mapping[str, Tensor]],
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimizer: Optimizer,
) -> None:
    """Makes these the slots of the optimizer over ``parameters``, in place of what it had."""
    names = {id(parameter): name for name, parameter in parameters}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {number: by_name[name] for number, name in enumerate(ordered) if name in by_name}
    optimizer.load_state_dict(state)
