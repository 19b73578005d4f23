"""What ours is measured against: hand-written loops, and the same loop by way of other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from benchmarks.problem import (
    MAX_GRAD_NORM,
    TASK,
    Clock,
    Numbers,
    Problem,
    build_model,
    build_optimizer,
    collate,
    examples,
)


def plain(problem: Problem, folder: Path) -> Numbers:
    """The loop one writes by hand; under several ranks with the problem's engine around the model."""
    if problem.size == 1:
        return independent(problem, folder)
    from benchmarks.engine_loops import by_hand

    return by_hand(problem)


def independent(problem: Problem, folder: Path) -> Numbers:
    """This rank's microbatches, without a word to another rank."""
    from benchmarks.engine_loops import clipped, clocked

    module = build_model(problem.model)
    return clocked(problem, module, clipped(module, module, optimizer=build_optimizer(module)))


def accelerate(problem: Problem, folder: Path) -> Numbers:
    """Hugging Face Accelerate. Its own scheduler wrapper steps once per rank, so torch's is used."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    module = build_model(problem.model)
    plain_optimizer = build_optimizer(module)
    scheduler = LambdaLR(plain_optimizer, problem.lr_factor)
    model, optimizer, loader = accelerator.prepare(module, plain_optimizer, data_loader(problem))
    clock = Clock(problem)
    for tensors in clock.watch(loader):
        accelerator.backward(mean_loss(model, tensors))
        accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    numbers = clock.stop(module)
    accelerator.end_training()
    if dist.is_initialized():
        dist.destroy_process_group()
    return numbers


def fabric(problem: Problem, folder: Path) -> Numbers:
    """Lightning Fabric."""
    from lightning_fabric import Fabric

    lightning = Fabric(accelerator="cpu", devices=problem.size, strategy=fabric_strategy(problem))
    lightning.launch()
    module = build_model(problem.model)
    model = lightning.setup_module(module)
    plain_optimizer = build_optimizer(module)  # of what the strategy may have put in the parameters' place
    scheduler = LambdaLR(plain_optimizer, problem.lr_factor)
    optimizer: Any = lightning.setup_optimizers(plain_optimizer)
    rows = Rows()
    mine = problem.order(rows.data)[problem.rank :: problem.size]
    plain_loader = DataLoader(rows, batch_sampler=mine, collate_fn=collate)  # type: ignore[arg-type]
    loader = lightning.setup_dataloaders(plain_loader, use_distributed_sampler=False)
    clock = Clock(problem)
    for tensors in clock.watch(loader):
        lightning.backward(mean_loss(model, tensors))
        lightning.clip_gradients(model, optimizer, max_norm=MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    numbers = clock.stop(module)
    if dist.is_initialized():
        dist.destroy_process_group()
    return numbers


def fabric_strategy(problem: Problem) -> Any:
    """Fabric's way to the problem's engine."""
    if problem.size == 1:
        return "auto"
    if problem.engine == "ddp":
        return "ddp"
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    from benchmarks.engine_loops import shard

    def parallelize(module: nn.Module, mesh: Any) -> nn.Module:
        return shard(module, mesh=mesh["data_parallel"])

    return ModelParallelStrategy(parallelize, data_parallel_size=problem.size, tensor_parallel_size=1)


def trainer(problem: Problem, folder: Path) -> Numbers:
    """The transformers Trainer, without logging, evaluation or saving."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock = Clock(problem)

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.passing(state.global_step)

    class Ours(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
            return mean_loss(model, inputs)

        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(data_loader(problem))

    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=problem.total,
        max_grad_norm=MAX_GRAD_NORM,
        per_device_train_batch_size=problem.microbatch,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    module = build_model(problem.model)
    optimizer = build_optimizer(module)
    schedule = LambdaLR(optimizer, problem.lr_factor)
    Ours(
        module, arguments, train_dataset=examples(), optimizers=(optimizer, schedule), callbacks=[Steps()]
    ).train()
    numbers = clock.stop(module)
    if dist.is_initialized():
        dist.destroy_process_group()
    return numbers


def mean_loss(model: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    return TASK.loss(model, tensors) / tensors["labels"].numel()


def batches(problem: Problem) -> Iterator[dict[str, Tensor]]:
    """This rank's microbatch of every step, collated when it is asked for."""
    data = examples()
    for indices in problem.order(data)[problem.rank :: problem.size]:
        yield collate([data.example(i) for i in indices])


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The examples as a DataLoader wants them."""

    def __init__(self) -> None:
        self.data = examples()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data.example(index)


class Order:
    """A batch sampler that goes through given microbatches; the library deals them out to ranks."""

    def __init__(self, problem: Problem, rows: Rows) -> None:
        self.batch_size = problem.microbatch
        self.drop_last = False
        self._order = problem.order(rows.data)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._order)


def data_loader(problem: Problem) -> DataLoader[dict[str, Any]]:
    rows = Rows()
    return DataLoader(rows, batch_sampler=Order(problem, rows), collate_fn=collate)
