"""Weights and optimizer state of a DeepSpeed engine under their plain names.

Its own helpers (``safe_set_full_optimizer_state``) are not used to load: they need a step to have been
taken, and at stage 3 a parameter whose size the world size divides. Weights are fp32 in every precision
here, so the engine's own copies of them are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distrib.errors import CheckpointError
from distrib.parallel.gather import gather_in_place
from distrib.parallel.state import Room, entry, named_weights
from distrib.state import Entry, StateReader, StateWriter

COUNTER = "step"
"""torch's optimizers count steps under this name; DeepSpeed keeps one count for many parameters."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements ``start:start+size`` of a parameter: what this rank's optimizer state holds of it."""

    start: int
    size: int
    flat: Tensor
    """The master weights of many parameters' pieces, which the optimizer's state belongs to."""
    offset: int
    """Where in ``flat`` this piece begins."""


def whole_shape(tensor: Tensor) -> torch.Size:
    """A tensor's shape, also where stage 3 left an empty tensor in its place."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def pieces(optimizer: Any, *, stage: int) -> dict[nn.Parameter, Piece]:
    """Every trained parameter's piece on this rank; of size 0 where another rank holds it."""
    if stage == 3:
        return {p: _shard_piece(optimizer, p) for group in optimizer.fp16_groups for p in group}
    groups = zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    return {p: _fragment_piece(p, flat) for group, flat in groups for p in group}


def _shard_piece(optimizer: Any, parameter: Any) -> Piece:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * size
    size = max(0, min(size, parameter.ds_numel - start))  # the last ranks' shards are padded
    return Piece(start=start, size=size, flat=optimizer.fp32_partitioned_groups_flat[group], offset=offset)


def _fragment_piece(parameter: Any, flat: Tensor) -> Piece:
    mapping = parameter._hp_mapping
    if mapping is None:
        return Piece(start=0, size=0, flat=flat, offset=0)
    source, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(start=source.start, size=source.numel, flat=flat, offset=place.start)


def save(writer: StateWriter, engine: Any, *, stage: int) -> None:
    """Hands over weights and optimizer state, gathering one tensor at a time."""
    weights = named_weights(engine.module)
    padded = [whole_shape(tensor).numel() + dist.get_world_size() for tensor in weights.values()]
    room = Room(max(padded) * torch.float32.itemsize, device=engine.device)
    writer.write("model", [_weight_entry(name, tensor, room=room) for name, tensor in weights.items()])
    writer.write("optimizer", list(_slot_entries(engine, stage=stage, room=room)))


def _weight_entry(name: str, tensor: Tensor, *, room: Room) -> Entry:
    if not hasattr(tensor, "ds_shape"):
        return entry(name, tensor)
    read = partial(_gathered, tensor, room)
    return Entry(name=name, shape=whole_shape(tensor), dtype=tensor.dtype, read=read)


def _gathered(parameter: Any, room: Room) -> Tensor:
    """Not by DeepSpeed's ``GatheredParameters``, which leaves a tensor that would have to be copied."""
    part = parameter.ds_tensor
    whole = room.tensor(part.numel() * dist.get_world_size(), part.dtype)
    parts = whole.chunk(dist.get_world_size())
    parts[dist.get_rank()].copy_(part)
    gather_in_place(parts)
    return whole[: parameter.ds_numel].view(parameter.ds_shape)


def _slot_entries(engine: Any, *, stage: int, room: Room) -> Iterator[Entry]:
    held = pieces(engine.optimizer, stage=stage)
    for name, parameter in engine.module.named_parameters():
        if parameter not in held:
            continue
        piece = held[parameter]
        for slot, value in engine.basic_optimizer.state.get(piece.flat, {}).items():
            if slot == COUNTER:
                yield entry(f"{name}/{slot}", value)
            elif isinstance(value, Tensor):
                shape = whole_shape(parameter)
                read = partial(_assembled, value, piece, shape, room)
                yield Entry(name=f"{name}/{slot}", shape=shape, dtype=value.dtype, read=read)


def _assembled(value: Tensor, piece: Piece, shape: torch.Size, room: Room) -> Tensor:
    """The whole slot on every rank: the ranks' pieces follow each other."""
    whole = room.tensor(math.prod(shape), value.dtype)
    whole[piece.start : piece.start + piece.size] = value[piece.offset : piece.offset + piece.size]
    mine = torch.tensor([piece.size])
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    gather_in_place(torch.split(whole, [int(size) for size in sizes]))
    return whole.view(shape)


def load(reader: StateReader, engine: Any, *, stage: int) -> None:
    """Takes this rank's part of a checkpoint. Raises `CheckpointError` where it is of another model."""
    weights = named_weights(engine.module)
    reader.check_model({name: whole_shape(tensor) for name, tensor in weights.items()})
    if stage == 3:
        engine.optimizer.parameter_offload.partition_all_parameters()
    with torch.no_grad():
        for name, tensor in weights.items():
            _load_weight(reader, name, tensor)
        engine.optimizer.refresh_fp32_params()
        if stage == 3 and (persistent := engine.optimizer.persistent_parameters):
            persistent[0].all_gather(persistent)
        _load_slots(reader, engine, stage=stage)


def _load_weight(reader: StateReader, name: str, tensor: Any) -> None:
    if not hasattr(tensor, "ds_shape"):
        tensor.copy_(reader.read("model", name))
        return
    size = tensor.ds_tensor.numel()
    start = dist.get_rank() * size
    part = read_elements(reader, "model", name, start=start, size=max(0, min(size, tensor.ds_numel - start)))
    tensor.ds_tensor[: part.numel()].copy_(part)


def _load_slots(reader: StateReader, engine: Any, *, stage: int) -> None:
    held = pieces(engine.optimizer, stage=stage)
    parameters = dict(engine.module.named_parameters())
    engine.basic_optimizer.state.clear()
    for full_name in sorted(reader.names("optimizer")):
        name, slot = full_name.rsplit("/", 1)
        piece = held[parameters[name]]
        state = engine.basic_optimizer.state[piece.flat]
        if slot == COUNTER:
            state[slot] = _counter(reader, full_name, before=state.get(slot)).to(piece.flat.device)
            continue
        values = read_elements(reader, "optimizer", full_name, start=piece.start, size=piece.size)
        if slot not in state:
            state[slot] = torch.zeros_like(piece.flat)
        state[slot][piece.offset : piece.offset + piece.size] = values.to(piece.flat.device)


def _counter(reader: StateReader, name: str, *, before: Tensor | None) -> Tensor:
    value = reader.read("optimizer", name).clone()
    if before is not None and before.item() != value.item():
        raise CheckpointError(
            f"{reader.folder}: '{name}' is {value.item():g} where others are {before.item():g}, and "
            "DeepSpeed keeps one count for all; go on with strategy=ddp or fsdp"
        )
    return value


def read_elements(reader: StateReader, section: str, name: str, *, start: int, size: int) -> Tensor:
    """Elements ``start:start+size`` of a tensor in row-major order, reading only the rows they are in."""
    shape = reader.shape(section, name)
    if not shape:
        return reader.read(section, name).reshape(1)[start : start + size]
    row = max(1, math.prod(shape[1:]))
    first = start // row
    rows = reader.read_rows(section, name, slice(first, -(-(start + size) // row)))
    return rows.flatten()[start - first * row :][:size]
