"""The training loop.

::

    restore
    for each step:
        train_step(this shard's microbatches)      the strategy's: forward, backward, clip, update
        when due: add up over ranks and log
        when due: evaluate
        when due: save
        stop when asked to, by a signal on any rank or by ``train.stop_after``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distrib.checkpointing import Checkpointer
from distrib.core import OWN, UNWATCHED, Progress
from distrib.errors import TrainingError
from distrib.evaluation import Evaluation
from distrib.metrics import PER_STEP, VOTES, Cadence, Meter
from distrib.strategies.base import Strategy
from distrib.tasks.base import Report
from distrib.tracking.base import Tracker

if TYPE_CHECKING:
    from distrib.config import TrainConfig
    from distrib.data.loader import Loader

MET_SECONDS = 0.5
"""Of training between two times that ranks are told they have met; it costs them 0.5 ms."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How `Trainer.fit` ended."""

    steps: int
    """Optimizer steps done in all, earlier runs included."""
    report: Report | None
    """The last evaluation."""
    stopped_by: str | None
    """What ended training early: a signal's name or ``train.stop_after``."""
    records: int
    """Steps trained in this call."""
    seconds: float
    """Their wall time."""
    examples: int
    peak_memory: int
    skipped: int


class Trainer:
    """Runs optimizer steps and looks after what happens between them."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        strategy: Strategy,
        loader: Loader,
        evaluation: Evaluation,
        checkpointer: Checkpointer,
        tracker: Tracker,
        meter: Meter,
        num_steps: int,
        lr: Callable[[int], float],
        stop_requested: Callable[[], str | None],
        started: Callable[[int], None],
        progress: Progress = UNWATCHED,
    ) -> None:
        self.config = config
        self.strategy = strategy
        self.loader = loader
        self.evaluation = evaluation
        self.checkpointer = checkpointer
        self.tracker = tracker
        self.meter = meter
        self.num_steps = num_steps
        self.lr = lr
        self.stop_requested = stop_requested
        self.started = started
        self.progress = progress
        self.cadence = Cadence(log_every=config.log_every)
        self.report: Report | None = None
        self.totals = Totals()

    def fit(self) -> Outcome:
        """Trains from where the newest checkpoint stands to the last step, or until asked to stop."""
        live = self.strategy.live_step()
        first = self.checkpointer.restore(self.strategy) if live is None else self.checkpointer.go_on(live)
        self.started(first)
        stopped_by, done = None, first
        self.meter.restart_clock()
        for batches in self.loader.steps(first, self.num_steps):
            result = self.strategy.train_step(batches.microbatches, batches.step)
            if result.redo:
                self.loader.redo()
                continue
            self.meter.add(
                result,
                examples=batches.examples,
                tokens=batches.tokens,
                targets=batches.targets,
                lr=self.lr(batches.step),
            )
            done = batches.step + 1
            self.progress(done)
            self.watch_skips(done, updated=result.updated)
            if not (result.meet or self.between_steps_due(done)):
                continue
            stopped_by = self.sync(done)
            self.evaluate_and_save(done, stopping=stopped_by is not None)
            self.meter.restart_clock()
            if stopped_by:
                break
        return self.totals.outcome(steps=done, report=self.report, stopped_by=stopped_by)

    def between_steps_due(self, done: int) -> bool:
        """Whether anything but training happens after ``done`` steps."""
        return (
            done in (self.num_steps, self.config.stop_after)
            or self.cadence.due(done)
            or (self.evaluation_due(done) or self.checkpointer.due(done))
        )

    def evaluation_due(self, done: int) -> bool:
        every = self.config.eval_every
        return done == self.num_steps or (every is not None and done % every == 0)

    def sync(self, done: int) -> str | None:
        """Adds up and logs the steps since the last time; returns why to stop, on all ranks alike."""
        asked = self.stop_requested()
        sums = self.meter.sums(stop=asked is not None)
        total = self.strategy.tally(sums, per_step=PER_STEP, votes=VOTES)
        records = self.meter.flush(total, last_step=done)
        records[-1] |= {f"{OWN}{name}": value for name, value in self.strategy.measures().items()}
        for record in records:
            self.tracker.step(record)
        self.totals.add(records)
        self.cadence.synced(done, step_seconds=sum(r["seconds"] for r in records) / len(records))
        if self.cadence.passed(MET_SECONDS):
            self.progress.met(done)
        if total["stop"].item() > 0:
            return asked or "a signal on another rank"
        return "train.stop_after" if done == self.config.stop_after and done < self.num_steps else None

    def evaluate_and_save(self, done: int, *, stopping: bool) -> None:
        """Whatever of the two is due after ``done`` steps."""
        improved = self.evaluate(done) if self.evaluation_due(done) else False
        if improved or stopping or done == self.num_steps or self.checkpointer.due(done):
            self.checkpointer.save(self.strategy, done, report=self.report, best=improved)

    def evaluate(self, done: int) -> bool:
        """Evaluates what is held out; says whether the result is the best so far."""
        self.report = self.evaluation.run(self.strategy)
        self.tracker.evaluation(done, self.report)
        return self.checkpointer.improved(self.report)

    def watch_skips(self, done: int, *, updated: bool) -> None:
        """Counts steps left out for a gradient that was not finite; too many in a row end the run."""
        if updated:
            self.totals.skipped_in_a_row = 0
            return
        self.totals.skipped += 1
        self.totals.skipped_in_a_row += 1
        self.tracker.notice(f"step {done} was skipped: the loss or the gradient was NaN or infinite")
        if self.totals.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"{self.totals.skipped_in_a_row} steps in a row (the last is step {done}) had a NaN "
                f"or infinite loss or gradient (train.max_skipped={self.config.max_skipped}). "
                f"{self.checkpointer.last_good()} Lower optimizer.lr, or look at the data of these steps."
            )


class Totals:
    """What the whole call of `Trainer.fit` adds up to."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self.examples = 0
        self.peak_memory = 0
        self.skipped = 0
        self.skipped_in_a_row = 0

    def add(self, records: Iterable[Mapping[str, float]]) -> None:
        for record in records:
            self.steps += 1
            self.seconds += record["seconds"]
            self.examples += int(record["examples"])
            self.peak_memory = max(self.peak_memory, int(record["memory"]))

    def outcome(self, *, steps: int, report: Report | None, stopped_by: str | None) -> Outcome:
        return Outcome(
            steps=steps,
            report=report,
            stopped_by=stopped_by,
            records=self.steps,
            seconds=self.seconds,
            examples=self.examples,
            peak_memory=self.peak_memory,
            skipped=self.skipped,
        )
