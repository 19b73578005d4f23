"""The runs of a sweep: one per combination of values, each composed and checked before the first starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from distrib.cli.compose import compose
from distrib.cli.groups import config_dir
from distrib.config import RunConfig
from distrib.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    overrides: tuple[str, ...]
    """What sets it apart from the other trials."""
    config: RunConfig | ConfigError
    """Its configuration, or why there is none."""


def make_trials(
    overrides: Sequence[str], *, config_dirs: Sequence[str] = (), world_size: int | None = None
) -> list[Trial]:
    """Splits ``a=1,2``, ``a=range(1,4)``, ``a=choice(x,y)`` and ``group=glob(*)`` into single runs.

    A combination that cannot run is kept, with its reason, beside those that can. Raises `ConfigError`
    where no combination can.
    """
    parsed = _parse(overrides)
    varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    trials = []
    for number, texts in enumerate(_combinations(parsed)):
        own = tuple(text for text in texts if text.partition("=")[0] in varied)
        config = _compose(texts, config_dirs=config_dirs, world_size=world_size)
        trials.append(Trial(number=number, overrides=own, config=config))
    _check_some_can_run(trials)
    return trials


def _compose(
    overrides: Sequence[str], *, config_dirs: Sequence[str], world_size: int | None
) -> RunConfig | ConfigError:
    try:
        config = compose(overrides, config_dirs=config_dirs, world_size=world_size)
    except ConfigError as error:
        return error
    if config.resume is not None:
        return ConfigError("resume", config.resume, "a sweep starts new runs; go on with one run without -m")
    return config


def _check_some_can_run(trials: Sequence[Trial]) -> None:
    refusals = [trial.config for trial in trials if isinstance(trial.config, ConfigError)]
    if len(refusals) == len(trials):
        raise refusals[0]


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own parser, which needs the config folder for ``glob``."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        try:
            return parser.parse_overrides(list(overrides))
        except HydraException as error:
            raise ConfigError("-m", " ".join(overrides), str(error).splitlines()[0]) from error


def _combinations(parsed: list[Override]) -> list[list[str]]:
    try:
        return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except HydraException as error:
        raise ConfigError("-m", " ".join(str(o.input_line) for o in parsed), str(error)) from error
