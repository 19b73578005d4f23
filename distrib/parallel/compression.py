"""Gradient compression under DistributedDataParallel: what is sent in place of the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from distrib.state import Entry, StateReader, StateWriter

MIN_SAVING = 2
"""A matrix is factored where that makes it so many times smaller, else sent whole (torch's default)."""

HALF_HOOKS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


def send_half(wrapped: DistributedDataParallel, compression: str) -> None:
    """Lets ``wrapped`` send its gradients as ``bf16`` or ``fp16``, added up in that type."""
    hook = HALF_HOOKS[compression]
    # By another name, as DDP refuses torch's bf16 hook without a GPU; gloo adds up bfloat16 as well.
    wrapped.register_comm_hook(None, lambda state, bucket: hook(state, bucket))


class PowerSGD:
    """Low-rank gradients with error feedback (Vogels et al. 2019, arXiv:1905.13727, algorithms 1 and 2).

    A matrix M goes as two factors of ``rank`` columns, P and Q, and what P Q' lacks of M is added to
    this rank's next gradient. Vectors, and matrices that `MIN_SAVING` keeps whole, are averaged.

    torch's own hook numbers its state by bucket, and DDP fills its buckets anew after a job's first
    step, so that state cannot go on in another job. It also sends its second message from a callback:
    gloo matches messages by the order in which they are sent, which two callbacks at once do not keep.

    Args:
        module: the model; state is kept by its parameters' names.
        rank: columns of a factor.
        start: optimizer steps at the beginning that send whole gradients.
    """

    def __init__(self, module: nn.Module, *, rank: int, start: int) -> None:
        self.names = {parameter: name for name, parameter in module.named_parameters()}
        self.rank = rank
        self.start = start
        self.step = 0
        self.errors: dict[str, Tensor] = {}
        """What this rank's last gradient lost, by parameter."""
        self.factors: dict[str, Tensor] = {}
        """Each matrix's last Q, where the search for the next one begins; the same on all ranks."""

    def attach(self, wrapped: DistributedDataParallel) -> None:
        """Lets ``wrapped`` send its gradients this way."""
        wrapped.register_comm_hook(None, lambda _, bucket: self.average(bucket))

    def forget(self) -> None:
        """Starts anew: after a gradient that was not finite, which would come back in every later one."""
        self.errors.clear()
        self.factors.clear()

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """DDP's hook: the approximate mean over ranks, in place of the bucket's gradients."""
        if self.step < self.start:
            sum_over_ranks([bucket.buffer()])
            bucket.buffer().div_(dist.get_world_size())
        else:
            named = {self.names[p]: g for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True)}
            matrices = {name: g.view(len(g), -1) for name, g in named.items() if self.is_worth_it(g)}
            self.compress(matrices, [g for name, g in named.items() if name not in matrices])
        done: Future[Tensor] = Future()
        done.set_result(bucket.buffer())
        return done

    def is_worth_it(self, gradient: Tensor) -> bool:
        """Whether its two factors are `MIN_SAVING` times smaller than the gradient."""
        if gradient.ndim < 2:
            return False
        rows, columns = len(gradient), gradient.numel() // len(gradient)
        return (rows + columns) * self.rank * MIN_SAVING < rows * columns

    def compress(self, matrices: Mapping[str, Tensor], others: Sequence[Tensor]) -> None:
        """Replaces every tensor by its mean over ranks: approximately for ``matrices``, by name."""
        size = dist.get_world_size()
        for name, matrix in matrices.items():
            if name in self.errors:
                matrix += self.errors[name]
        lefts = [matrix @ self.factor(name, matrix) for name, matrix in matrices.items()]
        sum_over_ranks([*others, *lefts])
        for other in others:
            other /= size
        lefts = [torch.linalg.qr(left).Q for left in lefts]
        rights = [matrix.T @ left for matrix, left in zip(matrices.values(), lefts, strict=True)]
        sum_over_ranks(rights)
        for (name, matrix), left, right in zip(matrices.items(), lefts, rights, strict=True):
            self.factors[name] = right.div_(size)
            approximate = left @ right.T
            self.errors[name] = matrix - approximate
            matrix.copy_(approximate)

    def factor(self, name: str, matrix: Tensor) -> Tensor:
        """The matrix's last Q; at first a random one that depends on the parameter's place alone."""
        if name not in self.factors:
            generator = torch.Generator().manual_seed(list(self.names.values()).index(name))
            start = torch.randn(matrix.size(1), self.rank, generator=generator, dtype=matrix.dtype)
            self.factors[name] = start.to(matrix.device)
        return self.factors[name]

    @property
    def _prefix(self) -> str:
        return f"powersgd/rank-{self.rank}/processes-{dist.get_world_size()}"

    def save(self, writer: StateWriter) -> None:
        """Hands over the factors, and every process's errors."""
        kept = [
            entry(f"{self._prefix}/factor/{name}", self.factors[name], source=0)
            for name in sorted(self.factors)
        ]
        for process in range(dist.get_world_size()):
            folder = f"{self._prefix}/error-{process}"
            kept += [
                entry(f"{folder}/{name}", self.errors[name], source=process) for name in sorted(self.errors)
            ]
        writer.write("strategy", kept)

    def load(self, reader: StateReader) -> None:
        """Takes what as many processes with as large a ``rank`` handed over; starts anew from any other's."""
        self.forget()
        factors, errors = f"{self._prefix}/factor/", f"{self._prefix}/error-{dist.get_rank()}/"
        for full_name in sorted(reader.names("strategy")):
            for folder, state in ((factors, self.factors), (errors, self.errors)):
                if full_name.startswith(folder):
                    state[full_name.removeprefix(folder)] = reader.read("strategy", full_name).clone()
        device = next(iter(self.names)).device
        self.factors = {name: tensor.to(device) for name, tensor in self.factors.items()}
        self.errors = {name: tensor.to(device) for name, tensor in self.errors.items()}


def entry(name: str, tensor: Tensor, *, source: int) -> Entry:
    """An entry for a tensor of which ``source``'s counts; it is sent to the others when it is read."""
    return Entry(
        name=name, shape=tensor.shape, dtype=tensor.dtype, read=partial(received, tensor, source=source)
    )


def received(tensor: Tensor, *, source: int) -> Tensor:
    """The ``tensor`` of rank ``source``, on every rank."""
    copy = tensor.clone()
    dist.broadcast(copy, src=source)
    return copy


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Adds up each tensor over all ranks, in place and in one message."""
    tensors = list(tensors)
    if not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(message)
    for tensor, piece in zip(tensors, torch.split(message, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
