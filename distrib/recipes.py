"""From a configuration's parts to the recipes that a strategy works from."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from distrib.config import RunConfig, TrainConfig
from distrib.core import Job
from distrib.errors import ConfigError

if TYPE_CHECKING:
    from distrib.data.prepare import Prepared
    from distrib.models.base import Model
    from distrib.optimizers import OptimizerRecipe
    from distrib.schedules import Schedule
    from distrib.tasks.base import Task

VOCABULARY = "vocabulary.json"
"""In a checkpoint's ``model/``: label names and special tokens, for what is done after training."""


class ModelRecipe:
    """Builds the model when the strategy is ready for it, the same on every rank.

    Attributes:
        num_parameters: of the model that was built; 0 before.
    """

    def __init__(self, config: RunConfig, *, model: Model, task: Task, prepared: Prepared) -> None:
        self._config = config
        self._model, self._task, self._prepared = model, task, prepared
        self._built: nn.Module | None = None
        self.num_parameters = 0

    def __call__(self) -> nn.Module:
        torch.manual_seed(self._config.seed)
        module = self._model.build(self._task, self._prepared.vocabulary)
        prepare_module(module, train=self._config.train)
        module.to(torch.float64 if self._config.precision.name == "fp64" else torch.float32)
        self._built = module
        self.num_parameters = sum(parameter.numel() for parameter in module.parameters())
        return module.train()

    def describe(self, folder: Path) -> None:
        """Writes into a checkpoint's ``model/`` what loads it without distrib: configuration, tokenizer."""
        assert self._built is not None, "described before it was built"
        vocabulary = self._prepared.vocabulary
        self._model.describe(self._built, folder, vocabulary)
        shutil.copytree(self._prepared.tokenizer_dir, folder, dirs_exist_ok=True)
        (folder / VOCABULARY).write_text(json.dumps(dataclasses.asdict(vocabulary), indent=1))


def prepare_module(module: nn.Module, *, train: TrainConfig) -> None:
    """Applies the switches that change how a model computes, not what."""
    if train.activation_checkpointing:
        enable = getattr(module, "gradient_checkpointing_enable", None)
        if enable is None:
            raise ConfigError(
                "train.activation_checkpointing", True, f"{type(module).__name__} does not offer it"
            )
        enable({"use_reentrant": False})
    if train.compile:
        module.compile()


def count_steps(train: TrainConfig, *, num_examples: int) -> int:
    """Optimizer steps of the whole run; an epoch's last global batch may be short."""
    if train.steps is not None:
        return train.steps
    if train.epochs is None:
        raise ConfigError("train.steps", None, "set train.steps or train.epochs")
    return math.ceil(train.epochs * math.ceil(num_examples / train.global_batch_size))


def make_job(
    config: RunConfig,
    *,
    model: ModelRecipe,
    task: Task,
    optimizer: OptimizerRecipe,
    schedule: Schedule,
    num_steps: int,
) -> Job:
    """The recipes of one run."""
    return Job(
        build_model=model,
        build_optimizer=optimizer,
        loss=task.loss,
        evaluate=task.evaluate,
        lr=lambda step: optimizer.lr * schedule.factor(step, num_steps),
        num_microbatches=math.ceil(config.train.global_batch_size / config.train.microbatch_size),
        max_grad_norm=config.train.max_grad_norm,
        precision=config.precision.name,
        seed=config.seed,
        prefetch=config.train.prefetch,
    )
