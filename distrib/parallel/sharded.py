"""State of a model whose parameters are DTensors: gathered for a checkpoint, cut when loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from distrib.core import Batch
from distrib.parallel import norm
from distrib.parallel.blocks import separate_blocks
from distrib.parallel.gather import gather_in_place
from distrib.parallel.ring import RingReduceScatter
from distrib.parallel.state import Room, named_weights, optimizer_slots
from distrib.state import Entry, StateReader, StateWriter


def make_mesh(device: str, *, num_copies: int, shard_size: int) -> DeviceMesh:
    """The ranks as ``num_copies`` copies of the model, each over ``shard_size`` neighbours."""
    kind = torch.device(device).type
    return init_device_mesh(kind, (num_copies, shard_size), mesh_dim_names=("replicate", "shard"))


def shard_model(
    model: nn.Module,
    *,
    mesh: DeviceMesh,
    device: str,
    reshard_after_forward: bool,
    cpu_offload: bool,
    param_dtype: torch.dtype | None,
) -> nn.Module:
    """Splits every parameter along dimension 0: block by block, then what is left, shared weights among it.

    The last block and what is left stay gathered after forward, as backward begins with them: to
    free them would send them once more and lower no peak. Gradients are summed over ranks, not
    averaged: the loss is divided once, where it is made.
    """
    is_cpu = torch.device(device).type == "cpu"
    shard = partial(
        fully_shard,
        mesh=mesh if mesh.size(0) > 1 else mesh["shard"],
        mp_policy=MixedPrecisionPolicy(
            param_dtype=param_dtype, reduce_dtype=torch.float32 if param_dtype else None
        ),
        offload_policy=CPUOffloadPolicy(pin_memory=not is_cpu) if cpu_offload else OffloadPolicy(),
    )
    kept_on = "cpu" if cpu_offload else device
    blocks = separate_blocks(model)
    for block in blocks:
        # moved in turn, so that the device holds no more than one that is whole
        shard(block.to(kept_on), reshard_after_forward=reshard_after_forward and block is not blocks[-1])
    shard(model.to(kept_on), reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
            if is_cpu:
                module.set_custom_reduce_scatter(RingReduceScatter())
    return model


def reshard(model: nn.Module) -> None:
    """Frees what is still gathered, which would go on to be used where this rank's part is overwritten."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(gradients: Sequence[Tensor], *, group: dist.ProcessGroup) -> Tensor:
    """The norm of a gradient whose disjoint parts the ranks of ``group`` hold."""
    squares = norm.total_norm(gradients).square()
    dist.all_reduce(squares, group=group)
    return squares.sqrt()


def full(tensor: Tensor, *, room: Room) -> Tensor:
    """The whole tensor, in ``room`` where it is sharded along dimension 0; collective then."""
    if not isinstance(tensor, DTensor):
        return tensor
    [axis] = [axis for axis, placement in enumerate(tensor.placements) if placement.is_shard()]
    group = tensor.device_mesh.get_group(axis)
    whole = room.tensor(tensor.numel(), tensor.dtype).view(tensor.shape)
    whole[local_rows(tensor)] = tensor.to_local().detach()
    gather_in_place(whole.chunk(group.size()), group=group)  # as `fully_shard` cuts
    return whole


def save_sharded(writer: StateWriter, module: nn.Module, optimizer: Optimizer) -> None:
    """Hands over weights and optimizer state, gathering one tensor at a time."""
    weights = named_weights(module)
    slots = dict(optimizer_slots(module, optimizer))
    largest = max([*weights.values(), *slots.values()], key=lambda tensor: tensor.nbytes)
    room = Room(largest.nbytes, device=largest.device)

    def entries(tensors: Mapping[str, Tensor]) -> list[Entry]:
        return [
            Entry(name=name, shape=tensor.shape, dtype=tensor.dtype, read=partial(full, tensor, room=room))
            for name, tensor in tensors.items()
        ]

    writer.write("model", entries(weights))
    writer.write("optimizer", entries(slots))


def load_sharded(reader: StateReader, module: nn.Module, optimizer: Optimizer) -> None:
    """Copies this rank's rows of every tensor into place. Raises `CheckpointError` for another model."""
    weights = named_weights(module)
    reader.check_model({name: tensor.shape for name, tensor in weights.items()})
    with torch.no_grad():
        for name, tensor in weights.items():
            local(tensor).copy_(read_local(reader, "model", name, like=tensor))
    slots = optimizer_state(reader, module)
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {number: slots[p] for number, p in enumerate(ordered) if p in slots}
    optimizer.load_state_dict(state)


def optimizer_state(reader: StateReader, module: nn.Module) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The optimizer's slots by parameter, cut like the parameter where they have its shape."""
    parameters = dict(module.named_parameters())
    slots: dict[nn.Parameter, dict[str, Tensor]] = {}
    for full_name in sorted(reader.names("optimizer")):
        name, slot = full_name.rsplit("/", 1)
        slots.setdefault(parameters[name], {})[slot] = read_slot(reader, full_name, like=parameters[name])
    return slots


def read_slot(reader: StateReader, name: str, *, like: nn.Parameter) -> Tensor:
    """One slot: sharded as its parameter is, or whole where it is a scalar such as Adam's step."""
    if reader.shape("optimizer", name) != tuple(like.shape) or not isinstance(like, DTensor):
        return reader.read("optimizer", name).clone()
    part = read_local(reader, "optimizer", name, like=like).to(like.device, copy=True)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def read_local(reader: StateReader, section: str, name: str, *, like: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds of ``like``."""
    if not isinstance(like, DTensor):
        return reader.read(section, name)
    rows = local_rows(like)
    return reader.read_rows(section, name, rows) if like.ndim else reader.read(section, name)


def local_rows(tensor: Any) -> slice:
    """Which rows of a DTensor that is sharded along dimension 0 this rank holds."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0]) if shape else slice(0, 0)


def pad_with_ghosts(microbatches: Sequence[Batch], *, count: int) -> list[Batch]:
    """``count`` microbatches, so that collective forward and backward passes meet on every rank."""
    missing = count - len(microbatches)
    return [*microbatches, *[microbatches[-1].ghost()] * missing] if missing else list(microbatches)
