"""Where a run's numbers go. Only rank 0 has trackers; the other ranks get `NullTracker`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from distrib.tasks.base import Report


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker may want to know before the first step."""

    name: str
    """The experiment, as ``news``."""
    run_dir: Path
    config: Mapping[str, Any]
    """The resolved configuration, as written to ``config.yaml``."""
    num_steps: int
    first_step: int
    """0, or the number of steps done before this run was resumed."""
    world_size: int
    strategy: str
    """The strategy's config name, for people to read."""
    num_parameters: int
    steps_per_epoch: int
    notes: Mapping[str, int | str]
    """What the data counted: examples, duplicates removed, …"""


class Tracker(Protocol):
    """Takes a run's numbers. Every method returns at once and never raises for a lost network.

    The constructor is pure: it keeps its arguments, and the modules here import light.
    """

    def check(self) -> None:
        """Raises `MissingDependencyError` where a package is missing. Called before ranks meet."""

    def start(self, info: RunInfo) -> None:
        """Called once, before the first step."""

    def step(self, record: Mapping[str, float]) -> None:
        """One optimizer step: ``step, loss, grad_norm, lr, examples, tokens, seconds, memory``.

        ``step`` counts finished steps (the first is 1), ``seconds`` is that step's wall time,
        ``memory`` the largest peak resident (or device) memory of any rank so far, in bytes. Now and
        then ``strategy/<name>`` besides: what the strategy measured of its own working, and as
        ``strategy/<whole>/<part>`` amounts since the last time, which add up.
        """

    def evaluation(self, step: int, report: Report) -> None:
        """Held-out numbers after ``step`` steps."""

    def notice(self, text: str) -> None:
        """Something the user should see: a skipped step, a checkpoint that was passed over."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run ended well; ``summary`` is what ``summary.json`` holds."""

    def close(self) -> None:
        """Always called last, also after an error."""


@dataclass(frozen=True, kw_only=True)
class SweepInfo:
    """What a tracker may keep of a whole sweep."""

    name: str
    """The group of its trials, as ``news-2026-01-31_12-00-00``."""
    root: Path
    """The sweep's directory."""
    metric: str
    config: Mapping[str, Any]
    """What was typed and which settings vary."""
    trials: Sequence[Mapping[str, Any]]
    """One row per trial, all with the same names: its number, status, settings and the metric's value."""
    summary: Mapping[str, Any]
    """The best trial's number, value and settings; how many trials ended how."""


@runtime_checkable
class SweepTracker(Protocol):
    """A tracker that also keeps a sweep as a whole, beside the runs of its trials."""

    def sweep(self, info: SweepInfo) -> None:
        """Called once, after the last trial."""


class NullTracker:
    """Takes everything and does nothing: what every rank but 0 is given."""

    def check(self) -> None: ...
    def start(self, info: RunInfo) -> None: ...
    def step(self, record: Mapping[str, float]) -> None: ...
    def evaluation(self, step: int, report: Report) -> None: ...
    def notice(self, text: str) -> None: ...
    def finish(self, summary: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
