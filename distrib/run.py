"""One rank's training run, put together from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.checkpointing import Checkpointer
from distrib.config import RunConfig, to_dict
from distrib.core import Job, Progress
from distrib.data.cache import cache_folder
from distrib.data.loader import Loader, evaluation
from distrib.data.prepare import Prepared, prepare
from distrib.diagnosis.watchdog import watched
from distrib.evaluation import Evaluation
from distrib.metrics import Meter
from distrib.recipes import ModelRecipe, count_steps, make_job
from distrib.targets import build
from distrib.tracking.base import NullTracker, RunInfo, Tracker
from distrib.tracking.environment import versions, without_secrets
from distrib.tracking.several import trackers_of_a_run
from distrib.trainer import Outcome, Trainer

if TYPE_CHECKING:
    from distrib.strategies.base import Strategy
    from distrib.tasks.base import Task
    from distrib.world import World


def never() -> str | None:
    """Nobody asks to stop."""
    return None


def run(
    config: RunConfig, *, run_dir: Path, world: World, stop_requested: Callable[[], str | None] = never
) -> Outcome | None:
    """Trains on this rank to the end, or until ``stop_requested`` names what asks to stop.

    Returns None on a rank that only serves. Raises `DistribError` where the user can mend it.
    """
    make = partial(build, plugins=config.plugins)
    strategy: Strategy = make(config.strategy, key="strategy")
    trackers = Trackers(config)
    trackers.of(world.rank).check()
    log = run_dir / "logs" / f"rank-{world.rank}.log"
    try:
        rank = assemble(config, run_dir=run_dir, world=world, strategy=strategy)
        with watched(world, log=log, check_steps=config.diagnosis.check_steps) as progress:
            strategy.setup(rank.job, replace(world, log=log))
            body = partial(attempt, rank, trackers=trackers, stop_requested=stop_requested, progress=progress)
            return strategy.run(body)
    finally:
        strategy.close()
        trackers.close()


class Trackers:
    """Rank 0's trackers, opened anew where an elastic engine's ranks have changed."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._open: Tracker = NullTracker()

    def of(self, rank: int) -> Tracker:
        """New ones for ``rank``; the last ones are closed."""
        self.close()
        if rank == 0:
            make = partial(build, plugins=self._config.plugins)
            configured = self._config.tracking.items()
            self._open = trackers_of_a_run(
                [make(target, key=f"tracking.{name}") for name, target in configured]
            )
        return self._open

    def close(self) -> None:
        """May be called twice."""
        self._open.close()
        self._open = NullTracker()


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What one rank trains with."""

    config: RunConfig
    run_dir: Path
    world: World
    strategy: Strategy
    tracker: Tracker
    task: Task
    prepared: Prepared
    model: ModelRecipe
    num_steps: int
    job: Job


def assemble(config: RunConfig, *, run_dir: Path, world: World, strategy: Strategy) -> Rank:
    """Prepares the data and the recipes. Raises `ConfigError`, `DataError`."""
    make = partial(build, plugins=config.plugins)
    task, model = make(config.task, key="task"), make(config.model, key="model")
    prepared = prepare(
        make(config.data, key="data"),
        task,
        model,
        cache_dir=cache_folder(config.cache_dir),
        is_builder=world.local_rank == 0,
    )
    recipe = ModelRecipe(config, model=model, task=task, prepared=prepared)
    num_steps = count_steps(config.train, num_examples=len(prepared.train))
    job = make_job(
        config,
        model=recipe,
        task=task,
        optimizer=make(config.optimizer, key="optimizer"),
        schedule=make(config.schedule, key="schedule"),
        num_steps=num_steps,
    )
    return Rank(
        config=config,
        run_dir=run_dir,
        world=world,
        strategy=strategy,
        tracker=NullTracker(),
        task=task,
        prepared=prepared,
        model=recipe,
        num_steps=num_steps,
        job=job,
    )


def attempt(
    rank: Rank,
    *,
    trackers: Trackers,
    stop_requested: Callable[[], str | None],
    progress: Progress,
) -> Outcome:
    """What `Strategy.run` runs, and an elastic engine runs again: training in this rank's place of now."""
    world = rank.strategy.current_world(rank.world)
    now = replace(rank, world=world, tracker=trackers.of(world.rank))
    return train(now, stop_requested=stop_requested, progress=progress)


def train(rank: Rank, *, stop_requested: Callable[[], str | None], progress: Progress) -> Outcome:
    """The loop, and the summary of it."""
    loader = Loader(
        rank.prepared.train,
        task=rank.task,
        vocabulary=rank.prepared.vocabulary,
        train=rank.config.train,
        seed=rank.config.seed,
        shard=rank.strategy.shard,
        device=rank.world.device,
    )
    info = run_info(rank, steps_per_epoch=loader.steps_per_epoch)
    trainer = Trainer(
        rank.config.train,
        strategy=rank.strategy,
        loader=loader,
        evaluation=held_out(rank),
        checkpointer=checkpointer(rank),
        tracker=rank.tracker,
        meter=Meter(shard=rank.strategy.shard, device=rank.world.device),
        num_steps=rank.num_steps,
        lr=rank.job.lr,
        stop_requested=stop_requested,
        started=lambda first: rank.tracker.start(replace(info, first_step=first)),
        progress=progress,
    )
    try:
        outcome = trainer.fit()
    finally:
        loader.close()
    rank.tracker.finish(summary(rank, outcome))
    return outcome


def held_out(rank: Rank) -> Evaluation:
    """The task's evaluation over the held-out examples."""
    vocabulary = rank.prepared.vocabulary
    return Evaluation(
        zeros=partial(rank.task.zeros, vocabulary=vocabulary),
        batches=partial(
            evaluation,
            rank.prepared.heldout,
            task=rank.task,
            vocabulary=vocabulary,
            batch_size=rank.config.train.eval_batch_size,
            device=rank.world.device,
        ),
        report=partial(rank.task.report, vocabulary=vocabulary),
    )


def checkpointer(rank: Rank) -> Checkpointer:
    """The run's checkpoints, and the one it goes on from."""
    config = rank.config
    return Checkpointer(
        config.checkpoint,
        root=rank.run_dir / "checkpoints",
        world=rank.world,
        resume=Path(config.resume) if config.resume else None,
        describe=rank.model.describe,
        facts={
            "strategy": strategy_name(config),
            "world_size": rank.world.size,
            "seed": config.seed,
            "config": without_secrets(to_dict(config)),
            "versions": versions(),
        },
        metric=rank.task.primary_metric,
        higher_is_better=rank.task.higher_is_better,
        notice=rank.tracker.notice,
    )


def strategy_name(config: RunConfig) -> str:
    """The strategy as people call it: its option in the group, else its class."""
    return config.choices.get("strategy") or str(config.strategy["_target_"]).rpartition(".")[2]


def run_info(rank: Rank, *, steps_per_epoch: int) -> RunInfo:
    """What the trackers are told before the first step."""
    return RunInfo(
        name=rank.config.name,
        run_dir=rank.run_dir,
        config=without_secrets(to_dict(rank.config)),
        num_steps=rank.num_steps,
        first_step=0,
        world_size=rank.world.size,
        strategy=strategy_name(rank.config),
        num_parameters=rank.model.num_parameters,
        steps_per_epoch=steps_per_epoch,
        notes=rank.prepared.notes,
    )


def summary(rank: Rank, outcome: Outcome) -> Mapping[str, Any]:
    """What ``summary.json`` says: the result first, then what it took."""
    return {
        "metrics": dict(outcome.report.metrics) if outcome.report else {},
        "steps": outcome.steps,
        "steps_planned": rank.num_steps,
        "stopped_by": outcome.stopped_by,
        "strategy": strategy_name(rank.config),
        "world_size": rank.world.size,
        "seconds": outcome.seconds,
        "examples_per_second": outcome.examples / outcome.seconds if outcome.seconds else 0.0,
        "peak_memory": outcome.peak_memory,
        "skipped_steps": outcome.skipped,
        "num_parameters": rank.model.num_parameters,
        "versions": versions(),
    }
