"""From a checked configuration to running processes: the only place that talks to a launcher."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.config import RunConfig, TrainConfig, load, to_yaml
from distrib.targets import build

if TYPE_CHECKING:
    from distrib.launchers.base import Launcher, LaunchPlan
    from distrib.launchers.forkserver import ForkServer
    from distrib.models.base import Model
    from distrib.strategies.base import Strategy


def launch(config: RunConfig, run_dir: Path, *, server: ForkServer | None = None) -> int:
    """Runs the processes of one training run to their end; returns the exit code of the job."""
    launcher = _launcher(config)
    return launcher.launch(_plan(config, run_dir, launcher), server=server)


def launch_together(
    configs: Sequence[RunConfig], *, at_once: int | None
) -> Callable[[Sequence[Path]], list[int]] | None:
    """What runs many run directories as one job; None where their launchers differ or offer none."""
    if not configs or any(config.launcher != configs[0].launcher for config in configs):
        return None
    launcher = _launcher(configs[0])
    launch_many = launcher.launch_many
    if launch_many is None:
        return None
    return lambda run_dirs: launch_many(
        [_plan(load(run_dir), run_dir, launcher) for run_dir in run_dirs], at_once=at_once
    )


@contextmanager
def early_server() -> Iterator[ForkServer | None]:
    """Begins to import torch for the ranks while the configuration is composed; None where it may not."""
    from distrib.launchers.forkserver import ForkServer

    if not ForkServer.available():
        yield None
        return
    with ForkServer() as server:
        yield server


def describe(config: RunConfig, run_dir: Path) -> Iterator[str]:
    """What ``--dry-run`` prints: the configuration, the derived accumulation, the commands."""
    launcher = _launcher(config)
    yield to_yaml(config)
    yield from accumulation(config.train, processes=launcher.size)
    yield ""
    plan = _plan(config, run_dir, launcher)
    for name, text in launcher.files(plan).items():
        yield f"{run_dir / name}:\n{text}"
    commands = launcher.plan(plan)
    yield f"{len(commands)} command{'s' if len(commands) > 1 else ''}:"
    for command in commands:
        environment = [f"{name}={value}" for name, value in sorted(command.env.items())]
        who = command.program or f"rank {command.rank}"
        yield f"  {who} on {command.host}:  {shlex.join([*environment, *command.argv])}"


def accumulation(train: TrainConfig, *, processes: int) -> Iterator[str]:
    """How a global batch is cut: derived from the two batch sizes and the number of processes, never set."""
    microbatches = math.ceil(train.global_batch_size / train.microbatch_size)
    shares = [len(range(shard, microbatches, processes)) for shard in range(processes)]
    yield f"global batch     {train.global_batch_size} examples"
    yield f"microbatches     {microbatches} of {train.microbatch_size} examples per step"
    yield f"accumulation     {', '.join(map(str, shares))} microbatches per data shard and step"
    yield f"processes        {processes}, each one data shard unless the strategy groups them"


def _plan(config: RunConfig, run_dir: Path, launcher: Launcher) -> LaunchPlan:
    from distrib.launchers.base import LaunchPlan

    strategy: Strategy = build(config.strategy, key="strategy", plugins=config.plugins)
    model: Model = build(config.model, key="model", plugins=config.plugins)
    size = launcher.size
    return replace(
        LaunchPlan.of_worker(run_dir),
        start_timeout=config.timeouts.start,
        expendable=frozenset(rank for rank in range(size) if strategy.may_lose(rank, num_processes=size)),
        imports=model.imports,
    )


def _launcher(config: RunConfig) -> Launcher:
    launcher: Launcher = build(config.launcher, key="launcher", plugins=config.plugins)
    return launcher
