"""The model and its optimizer on one rank: what strategies with torch's own optimizers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distrib.core import Batch, Job, StepResult
from distrib.parallel import norm
from distrib.parallel.accumulate import Context, accumulate
from distrib.parallel.building import build_in_shares
from distrib.parallel.precision import LossScale, autocast
from distrib.parallel.state import load_replica, save_replica
from distrib.parallel.update import clip_and_update
from distrib.state import StateReader, StateWriter

SaveState = Callable[[StateWriter, nn.Module, Optimizer], None]
LoadState = Callable[[StateReader, nn.Module, Optimizer], None]


class Replica:
    """The model, its optimizer and the arithmetic of one step, on one device.

    Args:
        place: splits the fresh model over the ranks, none of which then builds it whole; default: whole on
            ``device``.
        total_norm: the norm of the whole gradient from what this rank holds of it.
        local: what this rank holds of a gradient.
    """

    def __init__(
        self,
        job: Job,
        *,
        device: str,
        place: Callable[[nn.Module], nn.Module] | None = None,
        total_norm: Callable[[Sequence[Tensor]], Tensor] = norm.total_norm,
        local: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.job = job
        self.device = torch.device(device)
        self.forward_context = autocast(job.precision, self.device)
        if place is None:
            self.module = job.build_model().to(self.device)
        else:
            self.module = build_in_shares(job.build_model, place=place)
        self.total_norm = total_norm
        self.local = local
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = job.build_optimizer(
            (name, p) for name, p in self.module.named_parameters() if p.requires_grad
        )
        self.scale = LossScale(dynamic=job.precision == "fp16")

    def train_step(
        self,
        microbatches: Sequence[Batch],
        step: int,
        *,
        module: nn.Module | None = None,
        hold_sync: Context = nullcontext,
        finish_sync: Callable[[], None] | None = None,
        factor: float = 1.0,
    ) -> StepResult:
        """One optimizer step.

        Args:
            module: the wrapped model where something wraps it.
            finish_sync: waits until the gradients that backward sent off have come back as sums.
        """
        loss = accumulate(
            self.module if module is None else module,
            microbatches,
            job=self.job,
            step=step,
            device=self.device,
            forward_context=self.forward_context,
            hold_sync=hold_sync,
            factor=factor * self.scale.value,
        )
        if finish_sync is not None:
            finish_sync()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.local is not None:
            gradients = [self.local(gradient) for gradient in gradients]
        norm, updated = clip_and_update(
            self.optimizer,
            gradients,
            norm=self.total_norm(gradients),
            lr=self.job.lr(step),
            max_grad_norm=self.job.max_grad_norm,
            loss_scale=self.scale.value,
        )
        self.scale.update(finite=updated)
        return StepResult(loss=loss, grad_norm=norm, updated=updated)

    def eval_step(self, batch: Batch, *, no_grad: Context = torch.inference_mode) -> Mapping[str, Tensor]:
        """The task's sums over one batch; ``no_grad`` turns gradients off."""
        self.module.eval()
        try:
            with no_grad(), self.forward_context():
                return self.job.evaluate(self.module, batch.tensors)
        finally:
            self.module.train()

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by plain name, as tensors that may be overwritten."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def save(self, writer: StateWriter, *, save_state: SaveState = save_replica) -> None:
        """Hands over weights, optimizer state and, under fp16, the loss scale."""
        save_state(writer, self.module, self.optimizer)
        if self.scale.dynamic:
            writer.note("loss_scale", {"value": self.scale.value, "good_steps": self.scale.good_steps})

    def load(self, reader: StateReader, *, load_state: LoadState = load_replica) -> None:
        """Takes what `save` handed over."""
        load_state(reader, self.module, self.optimizer)
        if self.scale.dynamic and (saved := reader.note("loss_scale")) is not None:
            self.scale.value, self.scale.good_steps = float(saved["value"]), int(saved["good_steps"])
