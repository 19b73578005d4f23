"""Combinations that cannot run, said before any process starts. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distrib.cli.groups import TARGETS, options
from distrib.config import RunConfig, TrainConfig
from distrib.errors import ConfigError
from distrib.targets import build

if TYPE_CHECKING:
    from distrib.launchers.base import Launcher
    from distrib.strategies.base import Strategy


def check(config: RunConfig, *, world_size: int | None = None, config_dirs: Sequence[str] = ()) -> None:
    """Raises `ConfigError` for the first thing that cannot run.

    Args:
        world_size: processes that somebody else has started; None: the launcher of ``config`` will.
    """
    _check_chosen(config, config_dirs=config_dirs)
    _check_name(config.name)
    _check_numbers(config)
    _check_length(config.train)
    _check_batch(config.train)
    _check_targets(config, world_size=world_size)


def _check_chosen(config: RunConfig, *, config_dirs: Sequence[str]) -> None:
    for group in TARGETS:
        if not getattr(config, group):
            own = ", ".join(options(group, config_dirs=config_dirs))
            whole = ", ".join(options("experiment", config_dirs=config_dirs))
            raise ConfigError(group, "null", f"choose one ({own}), or a whole run: experiment=... ({whole})")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w][\w.-]*", name) or name == "latest":
        raise ConfigError("name", name, "names a folder: letters, digits, '-', '_' and '.', and not 'latest'")


def _check_numbers(config: RunConfig) -> None:
    train, checkpoint = config.train, config.checkpoint
    positive = {
        "train.steps": train.steps,
        "train.epochs": train.epochs,
        "train.global_batch_size": train.global_batch_size,
        "train.microbatch_size": train.microbatch_size,
        "train.eval_batch_size": train.eval_batch_size,
        "train.max_grad_norm": train.max_grad_norm,
        "train.log_every": train.log_every,
        "train.eval_every": train.eval_every,
        "train.stop_after": train.stop_after,
        "train.max_skipped": train.max_skipped,
        "checkpoint.save_every": checkpoint.save_every,
        "checkpoint.keep_last": checkpoint.keep_last,
        "timeouts.start": config.timeouts.start,
        "timeouts.collective": config.timeouts.collective,
    }
    for key, value in positive.items():
        # `not >` and not `<=`: NaN is refused too.
        if value is not None and not value > 0:
            raise ConfigError(key, value, "must be above 0")
    if train.prefetch < 0:
        raise ConfigError("train.prefetch", train.prefetch, "must not be negative; 0 collates in the loop")
    if (config.diagnosis.check_steps or 0) < 0:
        remedy = "must not be negative; 0 checks no step, null every one"
        raise ConfigError("diagnosis.check_steps", config.diagnosis.check_steps, remedy)
    if not 0 <= config.seed < 2**63:
        raise ConfigError("seed", config.seed, "a whole number from 0 to 2**63 - 1")


def _check_length(train: TrainConfig) -> None:
    if train.steps is None and train.epochs is None:
        raise ConfigError("train.steps", "null", "say how long to train: train.steps=... or train.epochs=...")
    if train.steps is not None and train.epochs is not None:
        raise ConfigError(
            "train.steps", train.steps, f"train.epochs={train.epochs} is set too; set one of them to null"
        )
    if train.steps is not None and train.stop_after is not None and train.stop_after > train.steps:
        raise ConfigError("train.stop_after", train.stop_after, f"is beyond the last step, {train.steps}")


def _check_batch(train: TrainConfig) -> None:
    if train.microbatch_size > train.global_batch_size:
        raise ConfigError(
            "train.microbatch_size",
            train.microbatch_size,
            f"is larger than train.global_batch_size={train.global_batch_size}; lower it or raise the other",
        )


def _check_targets(config: RunConfig, *, world_size: int | None) -> None:
    """Builds everything once: constructors are pure, and refuse what they cannot do."""
    built = {group: build(getattr(config, group), key=group, plugins=config.plugins) for group in TARGETS}
    for name, target in config.tracking.items():
        build(target, key=f"tracking.{name}", plugins=config.plugins)
    launcher = built["launcher"]
    built["strategy"].check(num_processes=world_size or launcher.size)
    if world_size is None:
        _check_serving(built["strategy"], launcher)
    if config.train.steps is not None:
        built["schedule"].factor(0, config.train.steps)


def _check_serving(strategy: Strategy, launcher: Launcher) -> None:
    """Hosts meant for ranks that serve are for those of the strategy, no more and no fewer."""
    serve = sum(strategy.serves(rank, num_processes=launcher.size) for rank in range(launcher.size))
    if launcher.num_serving not in (0, serve):
        raise ConfigError(
            "launcher.servers",
            f"{launcher.num_serving} processes",
            f"{serve} ranks of this strategy serve: make num_nodes x num_processes of launcher.servers as "
            "many, or set launcher.servers.num_nodes=0",
        )
