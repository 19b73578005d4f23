"""The loop one writes by hand around each engine: what a strategy's overhead is measured against.

Settings that decide how the engine works (bucket sizes, what is wrapped) are those of the strategy, so
that what is left to differ is the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from benchmarks.loops import batches, mean_loss
from benchmarks.problem import MAX_GRAD_NORM, Clock, Numbers, Problem, build_model, build_optimizer
from distrib.rendezvous import meet
from distrib.world import World

Step = Callable[[Mapping[str, Tensor], float], None]
"""One optimizer step on this rank's microbatch, at a learning rate."""
Loop = tuple[nn.Module, Step]


def by_hand(problem: Problem) -> Numbers:
    """Trains with the problem's engine."""
    with STARTS[problem.engine](), LOOPS[problem.engine](problem) as loop:
        return clocked(problem, *loop)


def clocked(problem: Problem, module: nn.Module, step: Step) -> Numbers:
    """All steps on this rank's microbatches, timed."""
    clock = Clock(problem)
    for number, tensors in enumerate(clock.watch(batches(problem))):
        step(tensors, problem.lr(number))
    return clock.stop(module)


@contextmanager
def started_torch() -> Iterator[None]:
    """The default process group."""
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def started_horovod() -> Iterator[None]:
    """Horovod's runtime."""
    from distrib.strategies.horovod.engine import start, stop

    start(world(), options={})
    try:
        yield
    finally:
        stop()


@contextmanager
def started_deepspeed() -> Iterator[None]:
    """DeepSpeed on our process group."""
    from distrib.strategies.deepspeed.session import connect, prepare

    here = world()
    with ExitStack() as taken:
        prepare(here, taken=taken)
        connect(here, taken=taken)
        yield


@contextmanager
def ddp(problem: Problem) -> Iterator[Loop]:
    """`DistributedDataParallel`."""
    module = build_model(problem.model)
    model = DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)
    yield module, clipped(model, module, optimizer=build_optimizer(module))


@contextmanager
def horovod(problem: Problem) -> Iterator[Loop]:
    """`DistributedOptimizer`, clipped between its two halves."""
    import horovod.torch as hvd

    module = build_model(problem.model)
    hvd.broadcast_parameters(module.state_dict(), root_rank=0)
    parameters = list(module.parameters())
    optimizer = hvd.DistributedOptimizer(
        build_optimizer(module), named_parameters=module.named_parameters(), op=hvd.Average
    )

    def step(tensors: Mapping[str, Tensor], lr: float) -> None:
        set_lr(optimizer, lr)
        mean_loss(module, dict(tensors)).backward()
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()

    yield module, step


@contextmanager
def deepspeed(problem: Problem) -> Iterator[Loop]:
    """`deepspeed.initialize`, whose engine clips and steps."""
    import deepspeed

    from distrib.strategies.deepspeed.settings import engine_config

    stage = int(problem.engine[-1])
    config = engine_config({}, stage=stage, offload="none", precision="fp32", max_grad_norm=MAX_GRAD_NORM)
    module = build_model(problem.model)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=build_optimizer(module), config=config, dist_init_required=False
    )

    def step(tensors: Mapping[str, Tensor], lr: float) -> None:
        set_lr(engine.optimizer, lr)
        engine.backward(mean_loss(engine, dict(tensors)))
        engine.step()

    try:
        yield module, step
    finally:
        engine.destroy()


@contextmanager
def fsdp(problem: Problem) -> Iterator[Loop]:
    """`fully_shard` on each block and on the rest."""
    module = shard(build_model(problem.model))
    yield module, clipped(module, module, optimizer=build_optimizer(module))


def clipped(model: nn.Module, module: nn.Module, *, optimizer: Optimizer) -> Step:
    """The step of torch alone, of ``module``, which ``model`` wraps or is."""
    parameters = list(module.parameters())

    def step(tensors: Mapping[str, Tensor], lr: float) -> None:
        set_lr(optimizer, lr)
        mean_loss(model, dict(tensors)).backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def shard(module: nn.Module, **options: Any) -> nn.Module:
    """`fully_shard` with ``options`` on each transformer block and on the rest."""
    from torch.distributed.fsdp import fully_shard

    from distrib.parallel.blocks import transformer_blocks

    for block in transformer_blocks(module):
        fully_shard(block, **options)
    fully_shard(module, **options)
    return module


LOOPS = {
    "ddp": ddp,
    "horovod": horovod,
    "fsdp": fsdp,
    "zero1": deepspeed,
    "zero2": deepspeed,
    "zero3": deepspeed,
}
"""By engine, once it is started: the module and the step that one writes by hand."""
STARTS = {
    "ddp": started_torch,
    "horovod": started_horovod,
    "fsdp": started_torch,
    "zero1": started_deepspeed,
    "zero2": started_deepspeed,
    "zero3": started_deepspeed,
}


def set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def world() -> World:
    return meet(World.from_env(), timeout=120.0, digest="benchmark")
