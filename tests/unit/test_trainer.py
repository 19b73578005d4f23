"""The loop, with a strategy that only writes down what it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distrib.checkpoint import list_checkpoints
from distrib.checkpointing import Checkpointer
from distrib.config import CheckpointConfig, TrainConfig
from distrib.core import Batch, DataShard
from distrib.data.loader import StepBatches
from distrib.errors import CheckpointError, TrainingError
from distrib.evaluation import Evaluation
from distrib.metrics import Cadence, Meter
from distrib.parallel.state import entry
from distrib.state import StateWriter
from distrib.tasks.base import Report
from distrib.testing.fake import Fake
from distrib.tracking.base import NullTracker
from distrib.trainer import Outcome, Trainer
from distrib.world import World

NUM_STEPS = 12


def batch() -> Batch:
    return Batch(tensors={"labels": torch.zeros(3, dtype=torch.long)}, index=0, step_targets=4)


class FourExamples:
    """A loader whose every global batch has 4 examples."""

    def __init__(self) -> None:
        self._redo = False

    def steps(self, first: int, last: int) -> Iterator[StepBatches]:
        while first < last:
            self._redo = False
            yield StepBatches(step=first, microbatches=[batch()], examples=4, tokens=40, targets=4)
            first += not self._redo

    def redo(self) -> None:
        self._redo = True


class Memory(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, float]] = []
        self.evaluated: list[int] = []
        self.notices: list[str] = []

    def step(self, record: Mapping[str, float]) -> None:
        self.records.append(record)

    def evaluation(self, step: int, report: Report) -> None:
        self.evaluated.append(step)

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Bench:
    """A trainer on a fake strategy, and everything that can be looked at afterwards."""

    def __init__(
        self, folder: Path, *, strategy: Fake | None = None, resume: bool = False, **train: Any
    ) -> None:
        self.strategy = strategy or Fake()
        self.tracker = Memory()
        self.scores = iter(train.pop("scores", [0.5] * 99))
        self.stop: str | None = None
        save = CheckpointConfig(save_every=train.pop("save_every", None), keep_last=train.pop("keep_last", 2))
        self.checkpointer = Checkpointer(
            save,
            root=folder / "checkpoints",
            world=World(),
            resume=folder if resume else None,
            describe=lambda _: None,
            facts={},
            metric="accuracy",
            higher_is_better=True,
            notice=self.tracker.notice,
        )
        self.root = folder / "checkpoints"
        self.first: list[int] = []
        self.trainer = Trainer(
            TrainConfig(**train),
            strategy=self.strategy,
            loader=FourExamples(),  # type: ignore[arg-type]
            evaluation=Evaluation(
                zeros=lambda: {"targets": torch.zeros((), dtype=torch.float64)},
                batches=lambda shard: iter([batch(), batch()]),
                report=self.report,
            ),
            checkpointer=self.checkpointer,
            tracker=self.tracker,
            meter=Meter(shard=DataShard(index=0, count=1), device="cpu"),
            num_steps=NUM_STEPS,
            lr=lambda step: 0.1 * step,
            stop_requested=lambda: self.stop,
            started=self.first.append,
        )

    def report(self, sums: Mapping[str, Tensor]) -> Report:
        return Report(metrics={"accuracy": next(self.scores), "targets": sums["targets"].item()})

    def fit(self) -> Outcome:
        return self.trainer.fit()

    def saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in list_checkpoints(self.root))


class Joined(Fake):
    """Has joined a job that stands at step 5, and measures itself."""

    def live_step(self) -> int | None:
        return 5

    def measures(self) -> Mapping[str, float]:
        return {"staleness": 2.0}


def test_a_rank_that_joined_a_job_goes_on_where_that_stands(tmp_path: Path) -> None:
    """It loads no checkpoint, although there is one, and begins at the step the job has reached."""
    Bench(tmp_path, save_every=2).fit()
    bench = Bench(tmp_path, strategy=Joined(), resume=True)
    assert bench.fit().steps == NUM_STEPS
    assert bench.first == [5]
    assert "load" not in bench.strategy.calls


def test_a_save_that_a_lost_rank_cut_short_is_cleared_away(tmp_path: Path) -> None:
    """Files of another number of ranks must not end up in the checkpoint that is saved anew."""
    partial = tmp_path / "checkpoints" / "step-00000006.partial" / "model"
    partial.mkdir(parents=True)
    (partial / "model-00002-of-00002.safetensors").write_bytes(b"half")
    Bench(tmp_path, strategy=Joined(), save_every=6).fit()
    assert not list(tmp_path.rglob("*-of-00002*"))


def test_what_a_strategy_measures_is_logged_once_per_message(tmp_path: Path) -> None:
    """The last record of those that were added up together carries it, under a name of its own."""
    bench = Bench(tmp_path, strategy=Joined(), log_every=3)
    bench.fit()
    measured = [int(record["step"]) for record in bench.tracker.records if "strategy/staleness" in record]
    assert measured == [6, 9, 12]
    assert {record.get("strategy/staleness", 2.0) for record in bench.tracker.records} == {2.0}


def test_every_step_is_recorded_once(tmp_path: Path) -> None:
    """However rarely ranks add up, each step has its own record, in order and with its numbers."""
    bench = Bench(tmp_path, log_every=5)
    outcome = bench.fit()
    records = bench.tracker.records
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    assert {record["loss"] for record in records} == {1.0 / 4}
    assert [record["lr"] for record in records] == pytest.approx([0.1 * step for step in range(NUM_STEPS)])
    assert (outcome.steps, outcome.records, outcome.examples) == (NUM_STEPS, NUM_STEPS, 4 * NUM_STEPS)
    assert all(record["seconds"] > 0 and record["memory"] > 1e7 for record in records)


def test_a_step_that_is_redone_is_recorded_once(tmp_path: Path) -> None:
    """Nothing has happened in it the first time: it is neither counted, nor skipped, nor anything due."""
    bench = Bench(tmp_path, strategy=Fake(redo_at=[4, 11]), eval_every=5)
    assert bench.fit().examples == 4 * NUM_STEPS
    trained = [call for call in bench.strategy.calls if call.startswith("train_step")]
    assert trained[4:6] == ["train_step 4", "train_step 4"]
    assert len(trained) == NUM_STEPS + 2
    assert [record["step"] for record in bench.tracker.records] == list(range(1, NUM_STEPS + 1))
    assert bench.tracker.evaluated == [5, 10, 12]


def test_evaluation_covers_all_batches_when_due(tmp_path: Path) -> None:
    """Every ``eval_every`` steps and after the last; sums of all batches reach the report."""
    bench = Bench(tmp_path, eval_every=5)
    outcome = bench.fit()
    assert bench.tracker.evaluated == [5, 10, 12]
    assert outcome.report is not None
    assert outcome.report.metrics["targets"] == 6


def test_checkpoints_are_saved_when_due_and_the_best_is_kept(tmp_path: Path) -> None:
    """save_every, the last step, and the best evaluation, of which only keep_last and the best stay."""
    bench = Bench(tmp_path, save_every=4, eval_every=3, scores=[0.7, 0.6, 0.5, 0.4])
    bench.fit()
    assert bench.saved() == [3, 8, 12]
    assert (bench.root / "best").resolve().name == "step-00000003"


def test_a_stop_saves_and_ends_and_the_rest_follows(tmp_path: Path) -> None:
    """A signal ends the run after its step with a checkpoint; resuming trains the missing steps only."""
    bench = Bench(tmp_path, log_every=1)
    bench.stop = "SIGTERM"
    outcome = bench.fit()
    assert (outcome.steps, outcome.stopped_by) == (1, "SIGTERM")
    assert bench.saved() == [1]
    after = Bench(tmp_path, resume=True)
    assert after.fit().steps == NUM_STEPS
    assert after.first == [1]
    assert after.strategy.calls[:2] == ["load", "train_step 1"]
    assert after.strategy.steps_taken == NUM_STEPS


def test_stop_after_leaves_the_schedule_alone(tmp_path: Path) -> None:
    """stop_after saves and stops there; the learning rates are those of the whole run."""
    bench = Bench(tmp_path, stop_after=5)
    outcome = bench.fit()
    assert (outcome.steps, outcome.stopped_by, bench.saved()) == (5, "train.stop_after", [5])


class Hoarder(Fake):
    """Keeps two things in its checkpoints that have no plain name, and never asks for them."""

    def save(self, writer: StateWriter) -> None:
        super().save(writer)
        writer.write("strategy", [entry(f"momentum/{name}", torch.ones(2)) for name in ("a", "b")])
        writer.note("version", {"number": 3})


def test_what_another_strategy_left_is_dropped_with_a_notice(tmp_path: Path) -> None:
    """State that only the saving strategy understands is named, once each, and training goes on."""
    Bench(tmp_path, strategy=Hoarder(), stop_after=6).fit()
    bench = Bench(tmp_path, resume=True)
    bench.fit()
    dropped = [notice for notice in bench.tracker.notices if notice.startswith("dropped")]
    assert [notice.split("'")[1] for notice in dropped] == ["momentum", "version"]


def test_best_is_remembered_over_a_resume(tmp_path: Path) -> None:
    """After a resume a worse evaluation does not become the best."""
    Bench(tmp_path, stop_after=6, eval_every=3, scores=[0.9, 0.8]).fit()
    after = Bench(tmp_path, resume=True, eval_every=3, scores=[0.5, 0.6])
    after.fit()
    assert (after.root / "best").resolve().name == "step-00000003"


def test_skipped_steps_are_said_and_too_many_end_the_run(tmp_path: Path) -> None:
    """Skips are named; as many in a row as allowed end the run with the last good checkpoint's name."""
    bench = Bench(tmp_path, strategy=Fake(skip_at=[3, 5]), max_skipped=2)
    assert bench.fit().skipped == 2
    assert [notice.split(" was")[0] for notice in bench.tracker.notices] == ["step 4", "step 6"]
    stuck = Bench(tmp_path / "b", strategy=Fake(skip_at=range(6, 12)), max_skipped=3, save_every=4)
    with pytest.raises(TrainingError, match=r"3 steps in a row .*step 9.*step-00000008"):
        stuck.fit()


def test_an_error_in_a_step_is_not_swallowed(tmp_path: Path) -> None:
    """What a strategy raises comes out of the loop as it is."""
    with pytest.raises(RuntimeError, match="asked to fail at step 2"):
        Bench(tmp_path, strategy=Fake(fail_at=2)).fit()


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails is a CheckpointError that names the folder; the one before stays whole."""
    Bench(tmp_path, stop_after=4).fit()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distrib.state.TensorFileWriter", full)
    after = Bench(tmp_path, resume=True, stop_after=8)
    with pytest.raises(CheckpointError, match=r"step-00000008.*No space left.*step-00000004"):
        after.fit()
    assert after.saved() == [4]


def test_nothing_is_loaded_without_resume(tmp_path: Path) -> None:
    """A fresh start does not look for checkpoints."""
    bench = Bench(tmp_path)
    bench.fit()
    assert bench.first == [0]
    assert "load" not in bench.strategy.calls


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def __call__(self, done: int) -> None:
        self.told.append(("step", done))

    def met(self, done: int) -> None:
        self.told.append(("met", done))


def test_who_watches_is_told_where_all_ranks_have_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After they have added up, at least `MET_SECONDS` of training apart."""
    bench, watcher = Bench(tmp_path, log_every=2), Watcher()
    bench.trainer.progress = watcher
    monkeypatch.setattr("distrib.trainer.MET_SECONDS", 0.0)
    bench.fit()
    assert watcher.told[:4] == [("step", 1), ("met", 1), ("step", 2), ("step", 3)]
    assert [done for what, done in watcher.told if what == "met"][1] == 3


def test_cadence_follows_the_slower_of_steps_and_seconds() -> None:
    """Short steps are added up every log_every, long ones as often as a second passes, at least each step."""
    cadence = Cadence(log_every=10)
    assert cadence.due(1)
    cadence.synced(1, step_seconds=0.001)
    assert [step for step in range(2, 13) if cadence.due(step)] == [11, 12]
    cadence.synced(11, step_seconds=0.4)
    assert not cadence.due(12)
    assert cadence.due(13)
    cadence.synced(13, step_seconds=30.0)
    assert cadence.due(14)


def test_cadence_counts_the_seconds_of_training() -> None:
    """All ranks alike, from the reduced seconds of a step, whatever their clocks say."""
    cadence = Cadence(log_every=10)
    cadence.synced(10, step_seconds=0.03)
    assert not cadence.passed(0.5)
    cadence.synced(20, step_seconds=0.03)
    assert cadence.passed(0.5)
    assert not cadence.passed(0.5)
