"""A checkpoint from what the servers hold, and back: full tensors by plain name, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distrib.parallel.state import entry, named_weights
from distrib.state import Entry, StateReader, StateWriter
from distrib.strategies.parameter_server.session import Op, Session, as_bytes

if TYPE_CHECKING:
    from distrib.strategies.parameter_server.worker import Worker

Slots = dict[str, dict[str, tuple[bool, str]]]
"""By parameter and slot: whether the slot is cut as the parameter is, and its type."""


def save(worker: Worker, writer: StateWriter) -> None:
    """Writes the servers' state from one worker, which holds the weights whole anyway.

    A slot has its parameter's shape or is a single number, as those of torch's elementwise optimizers.
    """
    weights = named_weights(worker.replica.module)
    writer.write_alone("model", [entry(name, tensor) for name, tensor in weights.items()])
    writer.write_alone("optimizer", list(_slot_entries(worker)))


def _slot_entries(worker: Worker) -> Iterator[Entry]:
    by_server: list[Slots] = [
        link.exchange(lambda session: session.ask(Op.SLOTS)).text for link in worker.links
    ]
    for name, parameter in worker.replica.module.named_parameters():
        found = next((slots[name] for slots in by_server if slots.get(name)), {})
        for slot, (is_cut, type_name) in found.items():
            dtype = getattr(torch, type_name.removeprefix("torch."))
            shape = tuple(parameter.shape) if is_cut else ()
            gather = partial(_gather, worker, name, slot, shape=shape, dtype=dtype)
            yield Entry(name=f"{name}/{slot}", shape=shape, dtype=dtype, read=gather)


def _gather(worker: Worker, name: str, slot: str, *, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    whole = torch.empty(shape, dtype=dtype)
    for server, link in enumerate(worker.links):
        for piece in worker.layout.pieces[server]:
            if piece.name == name:
                target = whole.view(-1)[piece.elements] if shape else whole
                link.exchange(partial(_get, name, slot, target))
    return whole


def _get(name: str, slot: str, target: Tensor, session: Session) -> None:
    session.tell(Op.GET, text=[name, slot])
    session.receive(as_bytes(target))
    session.settle()


def load_optimizer(worker: Worker, reader: StateReader) -> None:
    """Sends a checkpoint's optimizer state to the servers. The loss of one meanwhile ends the job."""
    for full_name in sorted(reader.names("optimizer")):
        _put(worker, reader, full_name)


def _put(worker: Worker, reader: StateReader, full_name: str) -> None:
    """One slot to the servers that hold a piece of its parameter; of a frozen one, to nobody."""
    name, slot = full_name.rsplit("/", 1)
    value = reader.read("optimizer", full_name)
    is_cut = name in worker.parameters and value.shape == worker.parameters[name].shape and value.ndim > 0
    for server, link in enumerate(worker.links):
        for piece in worker.layout.pieces[server]:
            if piece.name == name:
                part = value.reshape(-1)[piece.elements].clone() if is_cut else value
                link.session.tell(Op.PUT, text=[name, slot, str(part.dtype), list(part.shape)])
                link.session.send(as_bytes(part))
                link.session.confirmed()
