"""Saving and restoring during training: the collective side of `distrib.checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distrib.checkpoint import (
    BEST,
    TRAINER,
    CheckpointFolder,
    find_checkpoint,
    leave_digests,
    list_checkpoints,
    read_json,
    step_folder,
    write_json,
)
from distrib.errors import CheckpointError
from distrib.state import StateReader, StateWriter

if TYPE_CHECKING:
    from distrib.config import CheckpointConfig
    from distrib.strategies.base import Strategy
    from distrib.tasks.base import Report
    from distrib.world import World


class Checkpointer:
    """Saves and restores one run.

    Args:
        root: the run's ``checkpoints/``.
        resume: a run directory or checkpoint to start from; None: a fresh start.
        describe: writes what makes ``model/`` loadable without distrib (config, tokenizer).
        facts: what ``trainer.json`` says besides step and metrics.
        metric: name of the metric that decides which checkpoint is best.
        notice: where the user is told of a damaged checkpoint or dropped state.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        root: Path,
        world: World,
        resume: Path | None,
        describe: Callable[[Path], None],
        facts: Mapping[str, Any],
        metric: str,
        higher_is_better: bool,
        notice: Callable[[str], None],
    ) -> None:
        self.config = config
        self.folder = CheckpointFolder(root, keep_last=config.keep_last, keep_best=config.keep_best)
        self.world = world
        self.resume = resume
        self.describe = describe
        self.facts = facts
        self.metric = metric
        self.higher_is_better = higher_is_better
        self.notice = notice
        self.best = self._best_so_far()

    def due(self, done: int) -> bool:
        """Whether ``checkpoint.save_every`` asks for a checkpoint after ``done`` steps."""
        every = self.config.save_every
        return every is not None and done % every == 0

    def improved(self, report: Report) -> bool:
        """Whether a report beats the best one so far, which it then is. False where best is not kept."""
        value = report.metrics[self.metric]
        better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        if better:
            self.best = value
        return better and self.config.keep_best

    def save(self, strategy: Strategy, step: int, *, report: Report | None, best: bool) -> None:
        """Writes the checkpoint after ``step`` steps. Collective."""
        folder = self.folder.begin(step)
        writer = StateWriter(folder, rank=self.world.rank, size=self.world.size)
        try:
            strategy.save(writer)
            leave_digests(folder, writer.written, rank=self.world.rank)
            strategy.reduce({"written": torch.ones(())})  # returns when every rank has written
            if self.world.rank == 0:
                self._finish(folder, step, report=report, best=best)
        except OSError as error:
            raise CheckpointError(
                f"{folder} could not be written ({error.strerror}); the previous checkpoint is untouched. "
                f"{self.last_good()}"
            ) from error

    def _finish(self, folder: Path, step: int, *, report: Report | None, best: bool) -> None:
        self.describe(folder / "model")
        metrics = dict(report.metrics) if report else {}
        write_json(folder / TRAINER, {"step": step, "metrics": metrics, "best": self.best, **self.facts})
        self.folder.commit(step, best=best)

    def restore(self, strategy: Strategy) -> int:
        """Loads what ``resume`` means and returns its step; 0 for a fresh start. Collective.

        Rank 0 alone chooses and verifies; the others are told the step.
        """
        if self.world.rank == 0:
            self.folder.clean()
        if self.resume is None:
            return 0
        chosen = self._choose() if self.world.rank == 0 else None
        vote = torch.zeros(strategy.shard.count, dtype=torch.float64)
        if chosen is not None:
            vote[strategy.shard.index] = read_json(chosen / TRAINER)["step"]
        step = int(strategy.reduce({"step": vote})["step"].sum().item())
        folder = chosen or self._folder_of(step)
        reader = StateReader(folder)
        strategy.load(reader)
        self.notice(f"resumed after step {step} from {folder}")
        for name in reader.dropped():
            self.notice(f"dropped from the checkpoint: '{name}', of another strategy or number of processes")
        return step

    def go_on(self, step: int) -> int:
        """Loads nothing, as the state is there; removes what a save that was cut short left behind."""
        if self.world.rank == 0:
            self.folder.clean()
        return step

    def _choose(self) -> Path:
        assert self.resume is not None
        return find_checkpoint(self.resume, notice=self.notice)

    def _folder_of(self, step: int) -> Path:
        assert self.resume is not None
        inside = self.resume / "checkpoints"
        return step_folder(inside, step) if inside.exists() else self.resume

    def _best_so_far(self) -> float | None:
        best = self.folder.root / BEST / TRAINER
        return read_json(best).get("best") if best.exists() else None

    def last_good(self) -> str:
        """A sentence that names the newest finished checkpoint."""
        found = list_checkpoints(self.folder.root)
        return f"The last checkpoint is {found[0]}." if found else "No checkpoint was saved yet."
