"""Runs a sweep: starts what fits, notes what ended, stops what lags behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.checkpoint import list_checkpoints
from distrib.config import RunConfig, dump
from distrib.errors import ConfigError
from distrib.sweeps.base import Search
from distrib.sweeps.progress import Progress
from distrib.sweeps.pruning import lags
from distrib.sweeps.results import Record, Result, finished, outcome
from distrib.sweeps.running import Ended, Runner
from distrib.sweeps.screen import Screen
from distrib.sweeps.space import Space

ENDING = ("interrupted", "stopped by a signal")
"""A trial that ended so ends the sweep."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    overrides: tuple[str, ...]
    """What sets it apart from the other trials."""
    config: RunConfig | ConfigError
    """Its configuration, or why there is none."""


Compose = Callable[[int, Sequence[str]], Trial]
"""The trial of a number and its own overrides, checked."""


class Driver:
    """One sweep from its first trial, or from where it was left, to its end.

    Args:
        search: which trials there are.
        space: what varies.
        compose: makes a trial of overrides.
        root: the sweep's directory; trial ``k`` lies in ``k/`` below it.
        record: what is known of earlier trials; each one known runs again unless it is settled.
        planned: trials known beforehand, in order of number, from 0.
        runner: runs them.
        screen: shows them.
        is_main: whether this process writes the directory; the others of the same sweep only take part.
        settled: called with the record after each trial that ends.
    """

    def __init__(
        self,
        *,
        search: Search,
        space: Space,
        compose: Compose,
        root: Path,
        record: Record,
        planned: Sequence[Trial],
        runner: Runner,
        screen: Screen,
        is_main: bool = True,
        settled: Callable[[Record], object] = lambda record: None,
    ) -> None:
        self.search, self.space, self.compose = search, space, compose
        self.root, self.record, self.runner, self.screen = root, record, runner, screen
        self.is_main, self.settled = is_main, settled
        self.results = {result.number: result for result in record.trials}
        self.queue = deque(planned)
        self.running: dict[int, Trial] = {}
        self.progress: dict[int, Progress] = {}
        self.pruned: set[int] = set()
        self.over = False

    def run(self) -> Record:
        """Runs what is left; a failed trial does not stop the others, a signal does."""
        for trial in self.queue:
            self.results.setdefault(trial.number, _waiting(trial))
        self._write()
        try:
            with self.runner:
                self._start_what_fits()
                while self.running:
                    for ended in self.runner.wait():
                        self._settle(ended)
                    self._watch()
                    self._start_what_fits()
        finally:
            self.screen.close()
            self._give_up_waiting()
        return self.record

    def _start_what_fits(self) -> None:
        while not (self.over or self.runner.asked_to_stop):
            trial = self._next()
            if trial is None:
                return
            if isinstance(trial.config, ConfigError):
                self._note(replace(_waiting(trial), status="refused", message=str(trial.config)))
                self.queue.popleft()
            elif self.runner.fits(processes_of(trial.config)):
                self.queue.popleft()
                self._start(trial, trial.config)
            else:
                return

    def _next(self) -> Trial | None:
        """The trial at the head of the queue, proposed where it is empty."""
        if not self.queue:
            own = self.search.propose(self.space, self._past(), objective=self.record.objective)
            if own is None:
                return None
            self.queue.append(self.compose(len(self.results), own))
        return self.queue[0]

    def _start(self, trial: Trial, config: RunConfig) -> None:
        run_dir = self.root / str(trial.number)
        result = replace(_waiting(trial), status="running", run_dir=str(run_dir))
        if self.is_main:
            run_dir.mkdir(exist_ok=True)
            config = going_on(config, run_dir)
            dump(replace(config, run_dir=None), run_dir / "config.yaml")
            self._note(result)
        self.results[trial.number] = result
        self.running[trial.number] = trial
        self.progress[trial.number] = Progress(run_dir, metric=self.record.objective.metric)
        self.runner.start(trial.number, config, run_dir, processes=processes_of(config))

    def _settle(self, ended: Ended) -> None:
        trial = self.running.pop(ended.number)
        del self.progress[ended.number]
        assert isinstance(trial.config, RunConfig)
        result = replace(self.results[ended.number], seconds=round(ended.seconds, 3))
        result = outcome(
            result,
            trial.config,
            code=ended.code,
            message=ended.message,
            pruned=ended.number in self.pruned,
        )
        self.over = self.over or result.status in ENDING
        self._note(result)
        if self.is_main:
            self.settled(self.record)

    def _watch(self) -> None:
        """Looks at what running trials have written, and stops those that lag behind."""
        for progress in self.progress.values():
            progress.update()
        if self.search.prune_after_trials is not None:
            for number in self.running.keys() - self.pruned:
                if self._lags(number, after_trials=self.search.prune_after_trials):
                    self.pruned.add(number)
                    self.runner.stop(number)
        self.screen.show(None, self._past(), {n: str(progress) for n, progress in self.progress.items()})

    def _lags(self, number: int, *, after_trials: int) -> bool:
        return lags(
            self.progress[number].curve,
            [result.curve for result in self._past() if result.status == "done"],
            objective=self.record.objective,
            after_trials=after_trials,
            after_steps=self.search.prune_after_steps,
        )

    def _past(self) -> list[Result]:
        return [self.results[number] for number in sorted(self.results)]

    def _note(self, result: Result) -> None:
        self.results[result.number] = result
        self._write()
        if self.is_main:
            self.screen.show(result, self._past(), {})

    def _write(self) -> None:
        self.record = replace(self.record, trials=tuple(self._past()))
        if self.is_main:
            self.record.write(self.root)

    def _give_up_waiting(self) -> None:
        for number, result in self.results.items():
            if result.status == "waiting":
                self.results[number] = replace(result, status="not run")
        self._write()


def going_on(config: RunConfig, run_dir: Path) -> RunConfig:
    """``config``, from the newest checkpoint in ``run_dir`` where there is one."""
    return replace(config, resume=str(run_dir)) if list_checkpoints(run_dir / "checkpoints") else config


def processes_of(config: RunConfig) -> int:
    """How many processes of this machine a run takes."""
    return int(config.launcher.get("num_processes", 1))


def left_over(
    trials: Sequence[Trial], record: Record, *, settled: Sequence[str]
) -> tuple[list[Trial], Record]:
    """What of ``trials`` still has to run, and the record with what ended while nobody noted it."""
    known: dict[int, Result] = {result.number: result for result in record.trials}
    left = []
    for trial in trials:
        result = known.get(trial.number)
        if result is not None and result.status not in settled and isinstance(trial.config, RunConfig):
            result = known[trial.number] = finished(result, trial.config) or result
        if result is None or result.status not in settled:
            left.append(trial)
    return left, replace(record, trials=tuple(known[number] for number in sorted(known)))


def _waiting(trial: Trial) -> Result:
    return Result(number=trial.number, overrides=trial.overrides, status="waiting")
