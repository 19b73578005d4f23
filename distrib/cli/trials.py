"""What ``distrib train -m`` was given: settings for every trial, and the space that the others span.

Written in Hydra's grammar: ``a=1,2``, ``a=range(1,4)``, ``a=choice(x,y)``, ``group=glob(*)``,
``a=interval(0,1)``, ``a=tag(log, interval(1e-5,1e-3))``, ``a=int(interval(1,8))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from distrib.cli.compose import compose, compose_search
from distrib.cli.groups import config_dir
from distrib.config import RunConfig
from distrib.errors import ConfigError
from distrib.sweeps.base import Search
from distrib.sweeps.driver import Trial
from distrib.sweeps.random import Draws
from distrib.sweeps.space import Choice, Dimension, Interval, Space, Steps, draw

EXAMPLES = 8
"""Points tried in search of one that can run."""

HYDRAS_OWN = {
    "hydra/launcher": "launcher=slurm runs the trials as a job array; sweep.parallel=N runs N at once here",
    "hydra/sweeper": "choose sweep=grid, sweep=random or sweep=optuna",
}
"""Plugins of ``@hydra.main``, which is not used here: they would get one process's pickled function to
run, and a trial here is a job of many processes with a directory and a configuration file of its own."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A sweep as typed."""

    fixed: tuple[str, ...]
    """Overrides that all trials share."""
    space: Space
    search: Search
    config_dirs: tuple[str, ...]
    world_size: int | None = None
    """As in `distrib.cli.check.check`."""

    def trial(self, number: int, own: Sequence[str]) -> Trial:
        """One trial; one that cannot run is kept with its reason."""
        config: RunConfig | ConfigError
        try:
            config = compose([*self.fixed, *own], config_dirs=self.config_dirs, world_size=self.world_size)
            if config.resume is not None:
                config = ConfigError("resume", config.resume, "trials are new runs; leave it out")
        except ConfigError as error:
            config = error
        return Trial(number=number, overrides=tuple(own), config=config)

    def trials(self) -> list[Trial]:
        """Those known beforehand. Raises `ConfigError` where none of them can run."""
        trials = [self.trial(number, own) for number, own in enumerate(self.search.plan(self.space))]
        refusals = [trial.config for trial in trials if isinstance(trial.config, ConfigError)]
        if refusals and len(refusals) == len(trials):
            raise refusals[0]
        return trials

    def example(self, trials: Sequence[Trial]) -> RunConfig:
        """A run of this sweep, one of ``trials`` if it can be, for what all share. Raises `ConfigError`."""
        for trial in trials:
            if isinstance(trial.config, RunConfig):
                return trial.config
        refusals = []
        for number in range(EXAMPLES):
            config = self.trial(0, draw(self.space, Draws(f"example {number}"))).config
            if isinstance(config, RunConfig):
                return config
            refusals.append(config)
        raise refusals[0]


def ask(overrides: Sequence[str], *, config_dirs: Sequence[str] = (), world_size: int | None = None) -> Asked:
    """Reads what was typed. Raises `ConfigError` for what means nothing, or nothing here."""
    parsed = _parse(overrides)
    for override in parsed:
        _refuse(override)
    return Asked(
        fixed=tuple(
            _text(o) for o in parsed if not o.is_sweep_override() and not is_about_the_sweep(_key(o))
        ),
        space={_key(o): _dimension(o) for o in parsed if o.is_sweep_override()},
        search=compose_search(
            [_text(override) for override in parsed if not override.is_sweep_override()],
            config_dirs=config_dirs,
        ),
        config_dirs=tuple(config_dirs),
        world_size=world_size,
    )


def is_about_the_sweep(key: str) -> bool:
    """Whether a setting says how to search rather than what to train."""
    return key == "sweep" or key.startswith("sweep.")


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own parser, which needs the config folder for ``glob``."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        try:
            return parser.parse_overrides(list(overrides))
        except HydraException as error:
            raise ConfigError("-m", " ".join(overrides), str(error).splitlines()[0]) from error


def _refuse(override: Override) -> None:
    key = _key(override)
    for name, remedy in HYDRAS_OWN.items():
        if key == name or key.startswith(f"{name.replace('/', '.')}."):
            raise ConfigError(key, override.get_value_string(), f"Hydra's plugins are not used: {remedy}")
    if override.is_sweep_override() and (key == "run_dir" or is_about_the_sweep(key)):
        raise ConfigError(key, override.get_value_string(), "takes one value in a sweep")


def _dimension(override: Override) -> Dimension:
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(override, value)
    if (
        isinstance(value, RangeSweep)
        and not value.shuffle
        and _are_whole(value.start, value.stop, value.step)
    ):
        numbers = range(int(value.start or 0), int(value.stop or 0), int(value.step))
        if len(numbers) > 0 and numbers.step > 0:
            return Steps(low=numbers[0], high=numbers[-1], step=numbers.step)
    try:
        words = tuple(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(_key(override), override.get_value_string(), str(error)) from error
    if not words:
        raise ConfigError(_key(override), override.get_value_string(), "has no value in it")
    return Choice(words=words)


def _interval(override: Override, value: IntervalSweep) -> Dimension:
    low, high, log = value.start, value.end, "log" in value.tags
    if low is None or high is None or not low < high or (log and not low > 0):
        needed = "two numbers, the first the smaller" + (" and above 0" if log else "")
        raise ConfigError(_key(override), override.get_value_string(), f"an interval needs {needed}")
    if _are_whole(low, high):
        return Steps(low=int(low), high=int(high), log=log)
    return Interval(low=float(low), high=float(high), log=log)


def _are_whole(*values: object) -> bool:
    return all(isinstance(value, int) for value in values)


def _key(override: Override) -> str:
    return override.get_key_element()


def _text(override: Override) -> str:
    return f"{_key(override)}={override.get_value_element_as_str()}"


def group_name(name: str, *, root: Path) -> str:
    """What trackers call the runs of one sweep."""
    return f"{name}-{root.name}"


def grouped(trial: Trial, *, root: Path) -> Trial:
    """``trial`` with the sweep as the group of every tracker that knows groups and was given none."""
    if isinstance(trial.config, ConfigError):
        return trial
    name = group_name(trial.config.name, root=root)
    tracking = {
        tracker: {**target, "group": name} if target.get("group", "") is None else target
        for tracker, target in trial.config.tracking.items()
    }
    return replace(trial, config=replace(trial.config, tracking=tracking))
