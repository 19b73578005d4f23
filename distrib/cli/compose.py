"""From what the user typed to a checked `RunConfig`, with Hydra's compose API.

Hydra chooses the group options and merges the files; types, misspelt keys and impossible combinations
are judged here, in one place, for files and command line alike (`distrib.cli.schema`, `.check`).
``@hydra.main`` is not used: under a launcher that starts every rank at once it would make one
directory, and with ``-m`` one whole sweep, per rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distrib.cli.check import check
from distrib.cli.groups import GROUPS, SWEEP, TARGETS, no_such_option, search_path
from distrib.cli.overrides import Override, parse
from distrib.cli.resume import on_top_of, stored
from distrib.cli.schema import typed_section, typed_target
from distrib.config import RunConfig, from_dict, to_dict
from distrib.errors import ConfigError
from distrib.targets import build

if TYPE_CHECKING:
    from distrib.sweeps.base import Search


def compose(
    overrides: Sequence[str], *, config_dirs: Sequence[str] = (), world_size: int | None = None
) -> RunConfig:
    """The run that ``overrides`` describe, checked as far as is possible without torch.

    With ``resume=<run directory or checkpoint>`` that run's ``config.yaml`` is the base, and only
    what the overrides name is changed. Raises `ConfigError` with the dotted key, value and remedy.

    Args:
        overrides: ``key=value`` in Hydra's grammar.
        config_dirs: folders with more options for the groups.
        world_size: as in `check`.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.key.partition(".")[0] == SWEEP:
            raise ConfigError(override.key, override.value, "says how to search over several runs: add -m")
    values = _composed(parsed, config_dirs=config_dirs)
    del values[SWEEP]
    if values.get("resume"):
        values = on_top_of(stored(values["resume"]), values, parsed)
    config = finish(values)
    check(config, world_size=world_size, config_dirs=config_dirs)
    return config


def compose_search(overrides: Sequence[str], *, config_dirs: Sequence[str] = ()) -> Search:
    """How ``distrib train -m`` searches, by its ``sweep=`` and what an experiment says about it.

    Raises `ConfigError`, `MissingDependencyError`.
    """
    values = _composed(parse(overrides), config_dirs=config_dirs)
    plugins = values.get("plugins") or ()
    target = typed_target(values[SWEEP], key=SWEEP, plugins=plugins)
    search: Search = build(target, key=SWEEP, plugins=plugins)
    search.check()
    return search


def compose_part(overrides: Sequence[str], *, config_dirs: Sequence[str] = ()) -> RunConfig:
    """What ``overrides`` say, typed, for a command that trains nothing: model, task and data may be absent.

    Raises `ConfigError` as `compose` does, but for combinations, which it does not judge.
    """
    values = _composed(parse(overrides), config_dirs=config_dirs)
    del values[SWEEP]
    return finish(values)


def finish(values: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from plain values, every section and target typed."""
    checked = typed_section(RunConfig, {name: value for name, value in values.items() if value is not None})
    plugins = checked["plugins"] = tuple(checked.get("plugins", ()))
    for group in TARGETS:
        chosen = checked.get(group)
        checked[group] = typed_target(chosen, key=group, plugins=plugins) if chosen else {}
    checked["tracking"] = {
        name: typed_target(target, key=f"tracking.{name}", plugins=plugins)
        for name, target in checked.get("tracking", {}).items()
    }
    return from_dict(checked)


def _composed(overrides: Sequence[Override], *, config_dirs: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of the files and overrides: plain values, interpolations resolved."""
    main, *own = search_path(config_dirs)
    texts = [override.for_hydra for override in overrides]
    if own:
        texts.append("hydra.searchpath=[" + ",".join(f"'file://{folder}'" for folder in own) + "]")
    try:
        with initialize_config_dir(str(main), version_base="1.3"):
            tree = hydra_compose("config", texts, return_hydra_config=True)
    except MissingConfigException as error:
        raise _missing_option(error, config_dirs=config_dirs) from error
    except HydraException as error:
        raise _translated(error, overrides) from error
    return _plain(tree)


def _plain(tree: DictConfig) -> dict[str, Any]:
    chosen = tree.hydra.runtime.choices
    options = {group: chosen.get(group) for group in GROUPS if group != SWEEP}
    choices = {group: option for group, option in options.items() if isinstance(option, str)}
    OmegaConf.set_struct(tree, False)
    del tree["hydra"]
    try:
        # The defaults go below, so that ${train.steps} can be written wherever it stands.
        whole = OmegaConf.merge(_default_sections(), tree)
        values: dict[str, Any] = OmegaConf.to_container(whole, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(error.full_key or "config", "${...}", str(error).splitlines()[0]) from error
    return {**values, "choices": choices}


def _default_sections() -> dict[str, Any]:
    return {name: value for name, value in to_dict(RunConfig(name="run")).items() if value not in ({}, None)}


def _missing_option(error: MissingConfigException, *, config_dirs: Sequence[str]) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group in GROUPS:
        return no_such_option(group, option, config_dirs=config_dirs)
    return ConfigError(group or "config", option, str(error).splitlines()[0])


def _translated(error: HydraException, overrides: Sequence[Override]) -> ConfigError:
    """Hydra's own complaint, under the key it is about where its text repeats one."""
    text = " ".join(str(error).split())
    for override in overrides:
        if override.text in text or override.for_hydra in text:
            return ConfigError(override.key, override.text.partition("=")[2], text)
    return ConfigError("config", " ".join(o.text for o in overrides), text)
