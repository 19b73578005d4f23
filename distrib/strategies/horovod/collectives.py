"""What ranks tell each other beside gradients: sums, numbers, text, a whole replica; all without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distrib.parallel.replica import Replica
from distrib.parallel.state import fill_optimizer, named_weights, optimizer_slots


def add_up(vector: Tensor) -> Tensor:
    """The sum of a vector on the CPU over all ranks."""
    import horovod.torch as hvd

    # The name belongs to the size: Horovod keeps what it agreed on for a name, shape included.
    total: Tensor = hvd.allreduce(vector, op=hvd.Sum, name=f"sums.{vector.numel()}")
    return total


def gather(number: int) -> list[int]:
    """The numbers of all ranks, by rank."""
    import horovod.torch as hvd

    numbers: list[int] = hvd.allgather(torch.tensor([number]), name="numbers").tolist()
    return numbers


def broadcast(tensors: Mapping[str, Tensor], *, root: int = 0) -> None:
    """Gives every rank the tensors of ``root``, in place."""
    import horovod.torch as hvd

    hvd.broadcast_parameters(dict(tensors), root_rank=root)


def broadcast_text(text: str, *, root: int) -> str:
    """The text of ``root``, on every rank."""
    import horovod.torch as hvd

    encoded = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    length = torch.tensor([encoded.numel()])
    broadcast({"length": length}, root=root)
    received = encoded if hvd.rank() == root else encoded.new_empty(int(length))
    broadcast({f"text.{int(length)}": received}, root=root)
    return bytes(received.tolist()).decode()


def broadcast_replica(replica: Replica, *, root: int) -> None:
    """Makes every rank's replica that of ``root``, in place where there is a place already.

    ``root`` alone knows which slots its optimizer has: a rank that joins has taken no step.
    """
    broadcast(named_weights(replica.module), root=root)
    here = dict(optimizer_slots(replica.module, replica.optimizer))
    told = json.loads(broadcast_text(json.dumps(_described(replica, here)), root=root))
    slots = {name: _place(here.get(name), shape, dtype) for name, shape, dtype in told["slots"]}
    broadcast(slots, root=root)
    fill_optimizer(slots, replica.module, replica.optimizer)
    replica.scale.value, replica.scale.good_steps = told["loss_scale"]


def _described(replica: Replica, slots: Mapping[str, Tensor]) -> dict[str, Any]:
    described = [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in slots.items()]
    return {"slots": described, "loss_scale": [replica.scale.value, replica.scale.good_steps]}


def _place(tensor: Tensor | None, shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype)) if tensor is None else tensor
