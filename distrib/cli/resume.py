"""Going on with a run: its own configuration, with what the user typed on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from distrib.cli.overrides import Override
from distrib.config import RunConfig, flatten, read_yaml
from distrib.errors import ConfigError

DEFINING = (
    "seed",
    "precision",
    "model",
    "task",
    "data",
    "optimizer",
    "schedule",
    "train.steps",
    "train.epochs",
    "train.global_batch_size",
    "train.max_grad_norm",
    "train.group_by_length",
)
"""What defines a run's numbers; every other key is an execution detail."""


def stored(resume: str) -> dict[str, Any]:
    """The configuration of the run to go on from, which stays where it is."""
    run_dir = run_dir_of(resume)
    return {**read_yaml(run_dir / "config.yaml"), "run_dir": str(run_dir)}


def run_dir_of(resume: str) -> Path:
    """The run directory of a run directory or of one of its checkpoints. Raises `ConfigError`."""
    path = Path(resume).resolve()
    for folder in (path, path.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError("resume", resume, "no run is there: give a run directory or one of its checkpoints")


def on_top_of(
    stored: Mapping[str, Any], fresh: Mapping[str, Any], overrides: Sequence[Override]
) -> dict[str, Any]:
    """``stored`` with what the overrides name taken from ``fresh``: whole sections, then single values.

    ``plugins`` always comes from ``fresh``: somebody else's run directory must not allow its own code.
    """
    tree = OmegaConf.create(dict(stored))
    source = OmegaConf.create({key: value for key, value in fresh.items() if key != "choices"})
    for override in sorted(overrides, key=lambda override: not override.is_choice):
        if override.key == "experiment":
            raise ConfigError("experiment", override.value, "a resumed run keeps its own; leave it out")
        if override.is_choice:
            tree[override.key] = source.get(override.key)
            tree.choices[override.key] = fresh["choices"].get(override.key, "")
        else:
            OmegaConf.update(tree, override.key, OmegaConf.select(source, override.key), force_add=True)
    values: dict[str, Any] = OmegaConf.to_container(tree)  # type: ignore[assignment]
    # As a real path: a link like runs/latest may point elsewhere by the time a worker follows it.
    return {**values, "resume": str(Path(fresh["resume"]).resolve()), "plugins": fresh.get("plugins", [])}


def changes(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that define a run and differ: ``{dotted key: (before, after)}``."""
    old, new = flatten(before), flatten(after)
    return {
        key: (old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and any(key == name or key.startswith(f"{name}.") for name in DEFINING)
    }
