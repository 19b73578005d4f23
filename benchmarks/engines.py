"""Optimizer steps of any strategy on a stack of transformer blocks, for what does not depend on speed.

13.6 M parameters in matrices whose sizes four ranks divide, so that no padding is counted; a batch so small
that activations are little beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from distrib.core import Batch, Job, PrecisionName
from distrib.optimizers import AdamW
from distrib.rendezvous import meet
from distrib.strategies.base import Strategy
from distrib.targets import build
from distrib.world import World

CONF = Path(__file__).parents[1] / "conf" / "strategy"
VOCABULARY, LENGTH, LAYERS = 1024, 4, 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A strategy with options, and what theory says of it on N processes."""

    strategy: str
    """The name of its file in ``conf/strategy``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: PrecisionName = "fp32"
    traffic: Fraction | None = None
    """The least that a rank sends in a step, in units of (N-1)/N of the fp32 model; None: no such number."""
    memory: tuple[int, int] | None = None
    """Bytes per parameter that every rank holds, and that the ranks share, after backward."""

    def live_bytes(self, size: int) -> float | None:
        """Bytes per parameter that each of ``size`` ranks holds after backward."""
        return None if self.memory is None else self.memory[0] + self.memory[1] / size


KEEP = {"reshard_after_forward": False}
LEAN = {
    "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}}
}
"""No parameter stays gathered on every rank, small ones included."""
CASES = {
    "ddp": Case(strategy="ddp", traffic=Fraction(2), memory=(16, 0)),
    "ddp-autocast": Case(strategy="ddp", precision="bf16", traffic=Fraction(2), memory=(16, 0)),
    "ddp-bf16": Case(strategy="ddp", options={"compression": "bf16"}, traffic=Fraction(1)),
    "ddp-powersgd": Case(strategy="ddp", options={"compression": "powersgd", "powersgd_start": 0}),
    "fsdp": Case(strategy="fsdp", traffic=Fraction(3), memory=(0, 16)),
    "fsdp-keep": Case(strategy="fsdp", options=KEEP, traffic=Fraction(2), memory=(0, 16)),
    "fsdp-autocast": Case(strategy="fsdp", precision="bf16", traffic=Fraction(3), memory=(0, 16)),
    "fsdp-bf16": Case(
        strategy="fsdp",
        options={"param_dtype": "bf16"},
        precision="bf16",
        traffic=Fraction(2),
        memory=(0, 16),
    ),
    "zero1": Case(strategy="zero1", traffic=Fraction(2), memory=(4, 16)),
    "zero1-bf16": Case(strategy="zero1", precision="bf16", traffic=Fraction(2), memory=(4, 16)),
    "zero2": Case(strategy="zero2", traffic=Fraction(2), memory=(4, 16)),
    "zero2-bf16": Case(strategy="zero2", precision="bf16", traffic=Fraction(2), memory=(4, 16)),
    "zero3": Case(strategy="zero3", traffic=Fraction(3), memory=(0, 20)),
    "zero3-lean": Case(strategy="zero3", options=LEAN, traffic=Fraction(3), memory=(0, 20)),
    "zero3-bf16": Case(strategy="zero3", precision="bf16", traffic=Fraction(3), memory=(0, 20)),
    "horovod": Case(strategy="horovod", traffic=Fraction(2), memory=(16, 0)),
}


class Stack(nn.Module):
    """Token embedding, ``LAYERS`` encoder blocks, output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.output = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        scores: Tensor = self.output(hidden)
        return scores


def build_model(width: int) -> nn.Module:
    torch.manual_seed(0)
    return Stack(width)


def loss(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    scores = model(tensors["input_ids"]).flatten(0, 1)
    return F.cross_entropy(scores.float(), tensors["labels"].flatten(), reduction="sum")


def job(*, size: int, precision: PrecisionName, width: int) -> Job:
    """The recipes: one microbatch a rank."""
    return Job(
        build_model=lambda: build_model(width),
        build_optimizer=AdamW(lr=1e-3),
        loss=loss,
        evaluate=lambda model, tensors: {"loss": loss(model, tensors)},
        lr=lambda step: 1e-3,
        num_microbatches=size,
        max_grad_norm=1.0,
        precision=precision,
        seed=0,
    )


def batch(*, index: int, size: int) -> Batch:
    tokens = torch.arange(LENGTH).unsqueeze(0) + index
    return Batch(tensors={"input_ids": tokens, "labels": tokens}, index=index, step_targets=size * LENGTH)


def build_strategy(name: str, **options: Any) -> Strategy:
    """As the command would for ``strategy=<name>``."""
    target = {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **options}
    strategy: Strategy = build(target, key="strategy", plugins=())
    return strategy


@contextmanager
def strategy_of(case: Case, world: World, *, job: Job) -> Iterator[Strategy]:
    """The case's strategy, set up; closed afterwards."""
    strategy = build_strategy(case.strategy, **case.options)
    try:
        strategy.setup(job, world)
        yield strategy
    finally:
        strategy.close()


def train(strategy: Strategy, *, first: int, steps: int) -> None:
    """Steps ``first`` to ``first + steps``, one microbatch a rank."""
    shard = strategy.shard
    for step in range(first, first + steps):
        strategy.train_step([batch(index=shard.index, size=shard.count)], step)


def world_of_this_rank() -> World:
    return meet(World.from_env(), timeout=60.0, digest="benchmark")
