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

from benchmarks.loops import batches, mean_loss
from benchmarks.problem import MAX_GRAD_NORM, Clock, Numbers, Problem, build_model, build_optimizer
from distrib.rendezvous import meet
from distrib.world import World

Step = Callable[[Mapping[str, Tensor], float], None]
"""One optimizer step on this rank's microbatch, at a learning rate."""


def by_hand(problem: Problem) -> Numbers:
    """Trains with the problem's engine."""
    with ENGINES[problem.engine](problem) as (module, step):
        clock = Clock(problem)
        for number, tensors in enumerate(clock.watch(batches(problem))):
            step(tensors, problem.lr(number))
        return clock.stop(module)


@contextmanager
def horovod(problem: Problem) -> Iterator[tuple[nn.Module, Step]]:
    """`DistributedOptimizer`, clipped between its two halves."""
    import horovod.torch as hvd

    from distrib.strategies.horovod.engine import start, stop

    start(world(), options={})
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

    try:
        yield module, step
    finally:
        stop()


@contextmanager
def deepspeed(problem: Problem) -> Iterator[tuple[nn.Module, Step]]:
    """`deepspeed.initialize`, whose engine clips and steps."""
    from distrib.strategies.deepspeed.session import connect, prepare
    from distrib.strategies.deepspeed.settings import engine_config

    stage, here = int(problem.engine[-1]), world()
    config = engine_config({}, stage=stage, offload="none", precision="fp32", max_grad_norm=MAX_GRAD_NORM)
    config = {**config, "managed_gradient_accumulation": True}
    with ExitStack() as taken:
        prepare(here, taken=taken)
        connect(here, taken=taken)
        import deepspeed

        module = build_model(problem.model)
        optimizer = build_optimizer(module)
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )
        taken.callback(engine.destroy)

        def step(tensors: Mapping[str, Tensor], lr: float) -> None:
            set_lr(engine.optimizer, lr)
            engine.backward(mean_loss(engine, dict(tensors)))
            engine.step()

        yield module, step


@contextmanager
def fsdp(problem: Problem) -> Iterator[tuple[nn.Module, Step]]:
    """`fully_shard` on each block and on the rest."""
    dist.init_process_group("gloo")
    module = shard(build_model(problem.model))
    parameters = list(module.parameters())
    optimizer = build_optimizer(module)

    def step(tensors: Mapping[str, Tensor], lr: float) -> None:
        set_lr(optimizer, lr)
        mean_loss(module, dict(tensors)).backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    try:
        yield module, step
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module, **options: Any) -> nn.Module:
    """`fully_shard` with ``options`` on each transformer block and on the rest."""
    from torch.distributed.fsdp import fully_shard

    from distrib.parallel.blocks import transformer_blocks

    for block in transformer_blocks(module):
        fully_shard(block, **options)
    fully_shard(module, **options)
    return module


ENGINES = {
    "horovod": horovod,
    "fsdp": fsdp,
    "zero1": deepspeed,
    "zero2": deepspeed,
    "zero3": deepspeed,
}


def set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def world() -> World:
    return meet(World.from_env(), timeout=120.0, digest="benchmark")
