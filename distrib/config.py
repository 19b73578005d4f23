"""The typed configuration of a run, as frozen values.

`RunConfig` is what ``config.yaml`` in a run directory holds. Groups that choose an
implementation (`Target`) are the constructor of their ``_target_`` and nothing else. This module
imports neither Hydra nor torch: a worker reads the finished file (`load`), only the command that
the user starts composes it (`distrib.cli.compose`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Target = dict[str, Any]
"""``{"_target_": "package.module.Class", **constructor arguments}``."""


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
    """Steps collated ahead of the device; 0: collate in the loop."""
    log_every: int = 10
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
    verify: bool = True
    """Check every file's digest before a checkpoint is loaded."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number format of the arithmetic; weights and optimizer state stay in fp32 (fp64 under fp64)."""

    name: str = "fp32"
    """``fp32``, ``bf16`` (autocast), ``fp16`` (autocast with loss scaling) or ``fp64``."""


@dataclass(frozen=True, kw_only=True)
class TimeoutsConfig:
    """How long a rank waits for the others before it says who is missing, in seconds."""

    start: float = 120.0
    """Until every rank has reported at the rendezvous."""
    collective: float = 600.0
    """For one collective operation during training."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    name: str
    """The experiment's name; the run directory is ``runs/<name>/<time>``."""
    seed: int = 0
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
    strategy: Target = field(default_factory=dict)
    model: Target = field(default_factory=dict)
    task: Target = field(default_factory=dict)
    data: Target = field(default_factory=dict)
    optimizer: Target = field(default_factory=dict)
    schedule: Target = field(default_factory=dict)
    launcher: Target = field(default_factory=dict)
    tracking: Mapping[str, Target] = field(default_factory=dict)
    """Trackers by name, besides the screen, ``metrics.jsonl`` and the page, which every run has."""
