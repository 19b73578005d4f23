"""The typed configuration of a run, as frozen values.

`RunConfig` is what ``config.yaml`` in a run directory holds. Groups that choose an
implementation (`Target`) are the constructor of their ``_target_`` and nothing else. This module
imports neither Hydra nor torch: a worker reads the finished file (`load`), only the command that
the user starts composes it (`distrib.cli.compose`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from distrib.core import PrecisionName
from distrib.errors import ConfigError
from distrib.targets import Target, build, did_you_mean

__all__ = [
    "CheckpointConfig",
    "DiagnosisConfig",
    "PrecisionConfig",
    "RunConfig",
    "Target",
    "TimeoutsConfig",
    "TrainConfig",
    "build",
    "digest",
    "dump",
    "flatten",
    "from_dict",
    "load",
    "read_yaml",
    "to_dict",
    "to_yaml",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained for how long. Accumulation is derived from these, never set."""

    steps: int | None = None
    """Optimizer steps. Exactly one of ``steps`` and ``epochs`` is given."""
    epochs: float | None = None
    """Passes over the training data; rounded up to whole steps."""
    global_batch_size: int = 32
    """Examples per optimizer step, over all ranks."""
    microbatch_size: int = 8
    """Examples per forward and backward pass on one rank."""
    eval_batch_size: int = 32
    """Examples per evaluation pass on one rank."""
    max_grad_norm: float | None = 1.0
    """Largest global gradient norm; null: no clipping."""
    group_by_length: bool = False
    """Fill each global batch with examples of similar length."""
    prefetch: int = 2
    """Steps collated ahead of an accelerator; 0: collate in the loop, as a CPU always does."""
    log_every: int = 50
    """Steps at most between two reductions of the loss over ranks (every step is still logged)."""
    eval_every: int | None = None
    """Steps between evaluations; null: only after the last step."""
    stop_after: int | None = None
    """Save and stop after this step; the schedule still spans all steps."""
    max_skipped: int = 10
    """Steps in a row that may be skipped for NaN or Inf before the run stops."""
    activation_checkpointing: bool = False
    """Recompute activations in backward instead of keeping them."""
    compile: bool = False
    """Compile the model with ``torch.compile``."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved and which are kept."""

    save_every: int | None = None
    """Steps between checkpoints; null: only the last step (and when a signal asks)."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the best primary metric."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number format of the arithmetic; weights and optimizer state stay in fp32 (fp64 under fp64)."""

    name: PrecisionName = "fp32"
    """``fp32``, ``bf16`` (autocast), ``fp16`` (autocast with loss scaling) or ``fp64``."""


@dataclass(frozen=True, kw_only=True)
class TimeoutsConfig:
    """How long a rank waits for the others before it says who is missing, in seconds."""

    start: float = 120.0
    """Until every rank has reported at the rendezvous."""
    collective: float = 600.0
    """For one collective operation during training, and until a notice says that no step was made."""


@dataclass(frozen=True, kw_only=True)
class DiagnosisConfig:
    """How hard a job looks for its own mistakes."""

    check_steps: int | None = 2
    """Optimizer steps at the beginning in which the ranks compare each collective operation before it runs,
    which adds about 2 ms to it; 0: none; null: all. Later those are compared that hold ranks up, and about
    every second the last 32."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    name: str
    """The experiment's name; the run directory is ``runs/<name>/<time>``."""
    seed: int = 0
    """Of the initial weights, the order of the data, dropout and masking."""
    run_dir: str | None = None
    """Where the run is written; null: ``runs/<name>/<time>``."""
    resume: str | None = None
    """A run directory or one checkpoint to go on from."""
    cache_dir: str | None = None
    """Where encoded data is kept; null: ``$XDG_CACHE_HOME/distrib`` or ``~/.cache/distrib``."""
    plugins: tuple[str, ...] = ()
    """Packages besides distrib that a ``_target_`` may name."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    diagnosis: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    strategy: Target = field(default_factory=dict)
    model: Target = field(default_factory=dict)
    task: Target = field(default_factory=dict)
    data: Target = field(default_factory=dict)
    optimizer: Target = field(default_factory=dict)
    schedule: Target = field(default_factory=dict)
    launcher: Target = field(default_factory=dict)
    tracking: Mapping[str, Target] = field(default_factory=dict)
    """Trackers by name, besides the screen, ``metrics.jsonl`` and the page, which every run has."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """The option chosen in each group (``strategy: ddp``), for people to read; nothing depends on it."""


def load(path: str | os.PathLike[str]) -> RunConfig:
    """The configuration in a run directory's ``config.yaml`` (or the directory itself).

    Raises `ConfigError` for a file that is absent, is not YAML or holds a key this version lacks.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.yaml"
    return from_dict(read_yaml(file), source=str(file))


def from_dict(values: Mapping[str, Any], *, source: str = "the configuration") -> RunConfig:
    """The opposite of `to_dict`. Raises `ConfigError` for a key that does not exist, naming ``source``."""
    return _section(RunConfig, values, prefix="", source=source)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked. Raises `ConfigError` naming the file."""
    try:
        # libyaml's loader where PyYAML has it: 10 times faster than the one in Python.
        values = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise ConfigError("config", file, f"cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError("config", file, f"is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("config", file, "does not hold a configuration: a mapping is expected")
    return values


def dump(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes ``config`` so that `load` gives an equal value; the file is whole or not there."""
    file = Path(path)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(to_yaml(config), encoding="utf-8")
    draft.replace(file)


def to_yaml(config: RunConfig) -> str:
    """The text of ``config.yaml``."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(to_dict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain dicts, lists and scalars: what JSON and YAML can hold."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def digest(config: RunConfig) -> str:
    """A short fingerprint: equal exactly where two configurations are."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return dict(_flatten(to_dict(config), prefix=""))


def _flatten(values: Mapping[str, Any], *, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _section(cls: type[T], values: Mapping[str, Any], *, prefix: str, source: str) -> T:
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(f"{prefix}{name}", value, f"{source} holds a key that does not exist; {near}")
        arguments[name] = _value(hints[name], value, prefix=f"{prefix}{name}.", source=source)
    return cls(**arguments)


def _value(hint: Any, value: Any, *, prefix: str, source: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return _section(hint, value or {}, prefix=prefix, source=source)
    return tuple(value) if isinstance(value, list) else value
