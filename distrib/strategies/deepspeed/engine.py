"""DeepSpeed's engine: started, and run for one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distrib.core import Batch, Job, StepResult
from distrib.parallel.accumulate import accumulate
from distrib.parallel.building import build_in_shares
from distrib.parallel.precision import autocast
from distrib.world import World


def start(job: Job, world: World, config: Mapping[str, Any]) -> Any:
    """The engine over the job's model and optimizer."""
    import deepspeed

    def place(module: nn.Module) -> tuple[nn.Module, Optimizer]:
        # Before anything is split: the optimizer's groups go by shape, and stage 3 leaves empty parameters.
        named = ((name, p) for name, p in module.named_parameters() if p.requires_grad)
        optimizer = job.build_optimizer(named)
        return (_split(module, world, config) if split else module.to(world.device)), optimizer

    split = config["zero_optimization"]["stage"] == 3
    module, optimizer = build_in_shares(job.build_model, place=place) if split else place(job.build_model())
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=dict(config), dist_init_required=False
    )
    return engine


def _split(module: nn.Module, world: World, config: Mapping[str, Any]) -> nn.Module:
    """Moves a fresh model to the device parameter by parameter, each split on arrival.

    The model is not built inside ``zero.Init``, which splits a module when its constructor ends: what gives
    the weights their values afterwards, as transformers' models do, would find empty tensors.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=dict(config))
    for buffer in module.buffers():
        buffer.data = buffer.to(world.device)
    return module


def train_step(
    engine: Any, microbatches: Sequence[Batch], *, job: Job, world: World, step: int
) -> StepResult:
    """One update by the engine, which clips, and leaves the update out where the norm is not finite."""
    device = torch.device(world.device)
    loss = accumulate(
        engine,
        microbatches,
        job=job,
        step=step,
        device=device,
        forward_context=autocast(job.precision, device),  # the engine's own ends before the loss
        hold_sync=partial(_more_to_come, engine),
        factor=world.size,  # DeepSpeed divides the summed gradients by the world size
    )
    lr = job.lr(step)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    engine.step()
    norm = torch.as_tensor(engine.get_global_grad_norm())
    return StepResult(loss=loss, grad_norm=norm, updated=bool(engine.was_step_applied()))


@contextmanager
def _more_to_come(engine: Any) -> Iterator[None]:
    """A microbatch that is not the step's last. Not counted: ranks may differ in how many they have."""
    engine.set_gradient_accumulation_boundary(False)
    try:
        yield
    finally:
        engine.set_gradient_accumulation_boundary(True)


def eval_step(engine: Any, batch: Batch, *, job: Job, world: World) -> Mapping[str, Tensor]:
    """The task's sums over one batch.

    Not in inference mode: what stage 3 gathers in it could not be freed outside of it.
    """
    engine.module.eval()
    try:
        with torch.no_grad(), autocast(job.precision, torch.device(world.device))():
            return job.evaluate(engine.module, batch.tensors)
    finally:
        engine.module.train()
