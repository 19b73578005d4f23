"""The same work by way of `distrib.run`: its trainer, loader, meter, and the trackers of every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import distrib.run
from benchmarks.engines import build_strategy
from benchmarks.problem import (
    GLOBAL_BATCH,
    MAX_GRAD_NORM,
    NUM_EXAMPLES,
    PEAK_LR,
    SEED,
    TASK,
    VOCABULARY,
    WEIGHT_DECAY,
    Clock,
    Numbers,
    Problem,
    build_model,
    examples,
)
from distrib.config import CheckpointConfig, RunConfig, TrainConfig
from distrib.core import UNWATCHED
from distrib.data.loader import Loader, StepBatches
from distrib.data.prepare import Prepared
from distrib.models.base import Model
from distrib.optimizers import AdamW
from distrib.recipes import ModelRecipe, make_job
from distrib.run import Rank
from distrib.schedules import Linear
from distrib.tasks.base import Task, Vocabulary
from distrib.tracking.base import NullTracker
from distrib.tracking.several import trackers_of_a_run
from distrib.world import World


class Given(Model):
    """The benchmark's model as a distrib model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, task: Task, vocabulary: Vocabulary) -> nn.Module:
        self.module = build_model(self.name)
        return self.module

    def tokenizer_fingerprint(self) -> str:
        return "none"

    def tokenizer(self, corpus: Any) -> Any:
        return None

    def describe(self, module: nn.Module, folder: Path, vocabulary: Vocabulary) -> None:
        """Nobody loads this checkpoint."""

    def load(self, folder: Path, task: Task, vocabulary: Vocabulary) -> nn.Module:
        return self.module


def ours(problem: Problem, folder: Path) -> Numbers:
    """Trains as ``distrib train`` does once the data is encoded, with the clock in the loader."""
    clock, model = Clock(problem), Given(problem.model)
    with set_up(problem, folder=folder, model=model) as rank:
        fit(rank, watch=clock.watch)
        return clock.stop(model.module)


@contextmanager
def set_up(problem: Problem, *, folder: Path, model: Given) -> Iterator[Rank]:
    """One rank whose strategy is ready to train."""
    rank = assemble(problem, folder=folder, model=model)
    try:
        rank.strategy.setup(rank.job, rank.world)
        yield rank
    finally:
        rank.strategy.close()
        rank.tracker.close()


def fit(rank: Rank, *, watch: Callable[[Iterator[StepBatches]], Iterator[StepBatches]]) -> None:
    """All steps; their batches pass through ``watch``."""

    class WatchedLoader(Loader):
        def steps(self, first: int, last: int) -> Iterator[StepBatches]:
            return watch(super().steps(first, last))

    distrib.run.Loader = WatchedLoader  # type: ignore[attr-defined]
    body = partial(distrib.run.train, rank, stop_requested=distrib.run.never, progress=UNWATCHED)
    rank.strategy.run(body)


def assemble(problem: Problem, *, folder: Path, model: Model) -> Rank:
    """What `distrib.run.assemble` makes from a configuration, with the benchmark's data and model."""
    config = run_config(problem)
    data = examples()
    (folder / "tokenizer").mkdir(exist_ok=True)
    prepared = Prepared(
        train=data, heldout=data, vocabulary=VOCABULARY, tokenizer_dir=folder / "tokenizer", notes={}
    )
    recipe = ModelRecipe(config, model=model, task=TASK, prepared=prepared)
    strategy = build_strategy(problem.engine if problem.size > 1 else "single")
    optimizer = AdamW(lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    return Rank(
        config=config,
        run_dir=folder,
        world=world(problem),
        strategy=strategy,
        tracker=trackers_of_a_run() if problem.rank == 0 else NullTracker(),
        task=TASK,
        prepared=prepared,
        model=recipe,
        num_steps=problem.total,
        job=make_job(
            config, model=recipe, task=TASK, optimizer=optimizer, schedule=Linear(), num_steps=problem.total
        ),
    )


def run_config(problem: Problem) -> RunConfig:
    return RunConfig(
        name="benchmark",
        seed=SEED,
        choices={"strategy": problem.engine if problem.size > 1 else "single"},
        checkpoint=CheckpointConfig(keep_best=False),
        train=TrainConfig(
            steps=problem.total,
            global_batch_size=GLOBAL_BATCH,
            microbatch_size=problem.microbatch,
            eval_batch_size=NUM_EXAMPLES,
            max_grad_norm=MAX_GRAD_NORM,
        ),
    )


def world(problem: Problem) -> World:
    if problem.size == 1:
        return World()
    from distrib.rendezvous import meet

    return meet(World.from_env(), timeout=60.0, digest="benchmark")
