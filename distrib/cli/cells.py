"""The runs that a comparison is made of, composed and checked before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from distrib.cli.compose import compose, compose_part
from distrib.cli.groups import no_such_option, options
from distrib.config import CheckpointConfig, RunConfig
from distrib.errors import ConfigError, DistribError
from distrib.proof.jobs import Cell
from distrib.targets import build

if TYPE_CHECKING:
    from distrib.strategies.base import Strategy

REFERENCE = "single"
"""The strategy that every other is measured against."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all runs of a comparison share."""

    overrides: Sequence[str]
    config_dirs: Sequence[str]
    steps: int

    def compose(self, strategy: str, *, world_size: int, microbatch_size: int | None = None) -> RunConfig:
        """One run, whose schedule spans the steps compared, without trackers and with one checkpoint.

        Raises `ConfigError` for what cannot run.
        """
        size = [] if microbatch_size is None else [f"train.microbatch_size={microbatch_size}"]
        config = compose(
            [
                *self.overrides,
                f"strategy={strategy}",
                f"launcher.num_processes={world_size}",
                f"train.steps={self.steps}",
                "train.epochs=null",
                "train.stop_after=null",
                "train.eval_every=null",
                *size,
            ],
            config_dirs=self.config_dirs,
        )
        return replace(config, tracking={}, checkpoint=CheckpointConfig(keep_last=1, keep_best=False))

    def strategies(self, asked: Sequence[str]) -> Sequence[str]:
        """Those asked for, else every option but the reference. Raises `ConfigError` for a wrong name."""
        there = options("strategy", config_dirs=self.config_dirs)
        for name in asked:
            if name not in there:
                raise no_such_option("strategy", name, config_dirs=self.config_dirs)
        return asked or [name for name in there if name != REFERENCE]

    def exact(self, strategies: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Those whose result is meant to be one process's, and why each of the others' is not."""
        changes = {name: reason for name in strategies if (reason := self._changes(name)) is not None}
        return [name for name in strategies if name not in changes], changes

    def _changes(self, strategy: str) -> str | None:
        config = compose_part([*self.overrides, f"strategy={strategy}"], config_dirs=self.config_dirs)
        built: Strategy = build(config.strategy, key="strategy", plugins=config.plugins)
        return built.changes()

    def cells(
        self, strategies: Sequence[str], *, world_sizes: Sequence[int], microbatch_sizes: Sequence[int]
    ) -> list[Cell]:
        """Every combination; one that cannot run is kept with its reason."""
        return [
            Cell(
                strategy=strategy,
                world_size=world_size,
                microbatch_size=size,
                config=self._config_or_reason(strategy, world_size, size),
            )
            for strategy, world_size, size in product(strategies, world_sizes, microbatch_sizes)
        ]

    def _config_or_reason(self, strategy: str, world_size: int, size: int) -> RunConfig | DistribError:
        try:
            return self.compose(strategy, world_size=world_size, microbatch_size=size)
        except DistribError as error:
            return error


def check_each_can_run(cells: Sequence[Cell]) -> None:
    """Raises the reason of the first strategy that cannot run at any of its sizes."""
    for strategy in dict.fromkeys(cell.strategy for cell in cells):
        configs = [cell.config for cell in cells if cell.strategy == strategy]
        reasons = [config for config in configs if isinstance(config, DistribError)]
        if len(reasons) == len(configs):
            raise reasons[0]


def check_processes(config: RunConfig) -> None:
    """Raises `ConfigError` for a launcher on several nodes: what is compared runs on one machine."""
    nodes = config.launcher.get("num_nodes", 1)
    if nodes != 1:
        raise ConfigError("launcher.num_nodes", nodes, "comparisons run on one machine; leave it out")
