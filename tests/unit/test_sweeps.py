"""Searching: which trials there are, which are stopped, where they run, and what is kept of them."""

from __future__ import annotations

import random
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distrib.cli.sweep_resume import merged
from distrib.cli.trials import ask, grouped
from distrib.config import RunConfig
from distrib.errors import ConfigError, DataError, MissingDependencyError
from distrib.sweeps.base import Search
from distrib.sweeps.driver import Driver, Trial
from distrib.sweeps.grid import Grid
from distrib.sweeps.optuna import Optuna
from distrib.sweeps.pruning import lags
from distrib.sweeps.random import Random
from distrib.sweeps.results import Objective, Record, Result, best, exit_code
from distrib.sweeps.running import Background
from distrib.sweeps.screen import Lines, board
from distrib.sweeps.seats import Machine, Seats
from distrib.sweeps.space import Choice, Interval, Space, Steps, read

RATE: Space = {"optimizer.lr": Interval(low=1e-5, high=1e-1, log=True)}
MIXED: Space = {
    **RATE,
    "train.steps": Steps(low=4, high=20, step=4),
    "schedule": Choice(words=("linear", "wsd")),
}
ACCURACY = Objective(metric="accuracy", higher_is_better=True)
LOSS = Objective(metric="loss", higher_is_better=False)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=interval(0,1)", Interval(low=0.0, high=1.0)),
        ("optimizer.lr=tag(log, interval(1e-5,1e-3))", Interval(low=1e-5, high=1e-3, log=True)),
        ("train.steps=int(interval(2,9))", Steps(low=2, high=9)),
        ("train.steps=range(2,10,3)", Steps(low=2, high=8, step=3)),
        ("train.steps=range(9,2,-3)", Choice(words=("9", "6", "3"))),
        ("optimizer.lr=range(0.5,2,0.5)", Choice(words=("0.5", "1.0", "1.5"))),
        ("schedule=choice(linear,wsd)", Choice(words=("linear", "wsd"))),
        ("precision=glob(fp*)", Choice(words=("fp16", "fp32", "fp64"))),
        ("name='a b',c", Choice(words=("'a b'", "c"))),
    ],
)
def test_hydras_grammar_makes_the_space(word: str, expected: object) -> None:
    """Intervals, ranges and choices become what they are in the sampler's terms, orders of magnitude too."""
    asked = ask(["experiment=tiny", "sweep=random", "seed=3", word])
    assert list(asked.space.values()) == [expected]
    assert asked.fixed == ("experiment=tiny", "seed=3")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["optimizer.lr=interval(1,1)"], "optimizer.lr"),
        (["optimizer.lr=tag(log, interval(0,1))"], "optimizer.lr"),
        (["strategy=glob(nothing*)"], "strategy"),
        (["sweep=rndom"], "sweep"),
        (["sweep.parallell=2"], "sweep.parallell"),
        (["sweep.parallel=0"], "sweep.parallel"),
        (["sweep.parallel=many"], "sweep.parallel"),
        (["sweep.num_trials=3"], "sweep.num_trials"),
        (["sweep=random", "sweep.num_trials=0"], "sweep.num_trials"),
        (["sweep.prune_after_trials=0"], "sweep.prune_after_trials"),
        (["sweep.parallel=1,2"], "sweep.parallel"),
        (["run_dir=a,b"], "run_dir"),
        (["hydra/launcher=submitit_slurm"], "hydra/launcher"),
        (["hydra.launcher.timeout_min=3"], "hydra.launcher.timeout_min"),
        (["hydra/sweeper=optuna"], "hydra/sweeper"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words: list[str], key: str) -> None:
    """Empty spaces, misspelt settings and Hydra's own plugins are refused under their key."""
    with pytest.raises(ConfigError) as caught:
        ask(["experiment=tiny", *words])
    assert caught.value.key == key


def test_a_search_without_m_is_refused() -> None:
    """What only a sweep understands is not passed over in a single run."""
    from distrib.cli.compose import compose

    with pytest.raises(ConfigError, match="add -m"):
        compose(["experiment=tiny", "sweep=optuna"])


def test_an_engine_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without optuna the extra to install is told before anything runs."""
    monkeypatch.setattr("distrib.sweeps.optuna.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"distrib\[sweep\]"):
        ask(["experiment=tiny", "sweep=optuna"])


def test_random_trials_depend_on_seed_and_number_alone() -> None:
    """More trials begin with the same ones, another seed draws others, and rates spread by magnitude."""
    few, many, other = (
        Random(num_trials=count, seed=seed).plan(MIXED) for count, seed in ((5, 1), (400, 1), (5, 2))
    )
    assert many[:5] == few
    assert not set(few) & set(other)
    points = [read(MIXED, overrides) for overrides in many]
    rates = [float(point["optimizer.lr"]) for point in points]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert 5e-4 < statistics.median(rates) < 2e-3
    assert {point["train.steps"] for point in points} == {4, 8, 12, 16, 20}
    assert {point["schedule"] for point in points} == {"linear", "wsd"}


def told(search: Search, space: Space, *, count: int, objective: Objective = LOSS) -> list[Result]:
    """A sequential search for the rate 1e-2, whose value is its distance in orders of magnitude."""
    import math

    past: list[Result] = []
    while len(past) < count and (own := search.propose(space, past, objective=objective)) is not None:
        value = abs(math.log10(float(read(space, own)["optimizer.lr"])) + 2)
        past.append(Result(number=len(past), overrides=own, status="done", metric="loss", value=value))
    return past


def test_optuna_gets_closer_and_stops_after_its_trials() -> None:
    """The later half of the trials is nearer to the best rate than the random ones at the start."""
    results = told(Optuna(num_trials=30, seed=0), RATE, count=100)
    values = [result.value or 0.0 for result in results]
    assert len(results) == 30
    assert statistics.median(values[15:]) < 0.5 * statistics.median(values[:10])


def test_optuna_s_trials_follow_from_seed_and_results() -> None:
    """The same seed gives the same trials, also to a process that only has the record of the first ones."""
    whole = told(Optuna(num_trials=14, seed=3, startup_trials=5), MIXED, count=14)
    assert whole == told(Optuna(num_trials=14, seed=3, startup_trials=5), MIXED, count=14)
    assert whole != told(Optuna(num_trials=14, seed=4, startup_trials=5), MIXED, count=14)
    later = Optuna(num_trials=14, seed=3, startup_trials=5)
    kept = [Result.from_dict(vars(result)) for result in whole[:9]]
    assert later.propose(MIXED, kept, objective=LOSS) == whole[9].overrides


def test_optuna_is_told_how_each_trial_stands() -> None:
    """Failed, refused, pruned and running trials are taken in, and none of them stops the search."""
    statuses = ["failed", "refused", "pruned", "running", "waiting", "interrupted", "done", "stopped"]
    past = [
        Result(number=n, overrides=own, status=status, value=0.1 * n, curve=((1, 0.1 * n), (2, 0.2)))
        for n, (status, own) in enumerate(zip(statuses, Random(num_trials=8).plan(MIXED), strict=True))
    ]
    own = Optuna(startup_trials=1).propose(MIXED, past, objective=ACCURACY)
    assert own is not None
    assert read(MIXED, own).keys() == MIXED.keys()


@pytest.mark.parametrize("objective", [ACCURACY, LOSS])
def test_pruning_is_optuna_s_median_rule(objective: Objective) -> None:
    """On 300 drawn histories it decides as Optuna's MedianPruner does, with and without a head start."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    draws, decisions = random.Random(0), []
    for _ in range(300):
        after_trials, after_steps = draws.randint(1, 4), draws.choice([0, 3])
        curves = [
            [(step, draws.choice([draws.random(), 0.5])) for step in range(1, draws.randint(2, 6))]
            for _ in range(draws.randint(0, 6))
        ]
        *others, own = [*curves, [(step, draws.random()) for step in range(1, draws.randint(2, 6))]]
        study = optuna.create_study(
            direction="maximize" if objective.higher_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(after_trials, after_steps),
        )
        for curve in others:
            study.add_trial(optuna.create_trial(value=0.0, intermediate_values=dict(curve)))
        trial = study.ask()
        for step, value in own:
            trial.report(value, step)
        decision = lags(own, others, objective=objective, after_trials=after_trials, after_steps=after_steps)
        assert decision == trial.should_prune()
        decisions.append(decision)
    assert 20 < sum(decisions) < 280


def test_as_many_trials_as_the_machine_has_cores_for() -> None:
    """Each rank takes a core; one trial always fits; torch's threads are shared out."""
    seats = Seats(None, machine=Machine(cores=5))
    assert seats.take(0, 2) == {}  # the test suite has set OMP_NUM_THREADS
    assert seats.fits(3)
    assert not seats.fits(4)
    seats.leave(0)
    assert seats.fits(99)


def test_trials_beside_each_other_share_out_gpus_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has GPUs of its own while there are any, then those with the fewest ranks; cores likewise."""
    seats = Seats(3, machine=Machine(cores=8, gpus=("0", "1", "2")))
    given = [seats.take(number, 1)["CUDA_VISIBLE_DEVICES"] for number in (7, 8)]
    assert given == ["0", "1"]
    assert seats.fits(2)
    assert seats.take(9, 2)["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert not seats.fits(1)
    seats.leave(8)
    assert seats.take(10, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Seats(2, machine=Machine(cores=8)).take(0, 2) == {"OMP_NUM_THREADS": "2"}


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every field survives; a damaged record is named."""
    trial = Result(number=0, overrides=("a=1",), status="done", value=0.5, curve=((1, 0.25), (2, 0.5)))
    record = Record(name="news", overrides=("a=1,2",), objective=ACCURACY, trials=(trial,))
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    (tmp_path / "sweep.json").write_text('{"trials": 3}')
    with pytest.raises(DataError, match=r"sweep\.json"):
        Record.read(tmp_path)


def test_the_best_are_those_that_ended_with_a_value() -> None:
    """By the metric's own direction; pruned, failed and unvalued trials are not among them."""
    trials = [
        Result(number=n, overrides=(), status=status, metric="loss", value=value)
        for n, (status, value) in enumerate(
            [
                ("done", 2.0),
                ("stopped", 1.0),
                ("pruned", 0.1),
                ("failed", None),
                ("done", None),
                ("done", 1.0),
            ]
        )
    ]
    assert [trial.number for trial in best(trials, LOSS)] == [1, 5, 0]
    assert [trial.number for trial in best(trials, replace(LOSS, higher_is_better=True))] == [0, 1, 5]
    assert exit_code(trials) == 1
    assert exit_code(trials[:3]) == 0


def test_a_sweep_that_goes_on_keeps_its_settings(tmp_path: Path) -> None:
    """Words typed again must say the same, except those about how many; plugins are typed, never trusted."""
    stored = ["experiment=tiny", "seed=1,2", "sweep.parallel=2", "plugins=[theirs]"]
    assert merged(stored, ["seed=1,2", "sweep.parallel=1"], root=tmp_path) == [
        "experiment=tiny",
        "seed=1,2",
        "sweep.parallel=1",
    ]
    for word in ("seed=1,2,3", "train.steps=3"):
        with pytest.raises(ConfigError) as caught:
            merged(stored, [word], root=tmp_path)
        assert caught.value.key == word.partition("=")[0]


@pytest.mark.slow
def test_all_trials_are_one_group_of_the_tracker(tmp_path: Path) -> None:
    """Named after the sweep where the user named none; trackers without groups are left alone."""
    root = tmp_path / "2026-01-01"
    words = ["experiment=tiny", "tracking=[wandb,tensorboard]", "seed=1,2"]
    trials = [grouped(trial, root=root) for trial in ask(words).trials()]
    configs = [trial.config for trial in trials if isinstance(trial.config, RunConfig)]
    assert [config.tracking["wandb"]["group"] for config in configs] == ["tiny-2026-01-01"] * 2
    assert "group" not in configs[0].tracking["tensorboard"]
    (own,) = ask(["experiment=tiny", "tracking=wandb", "tracking.wandb.group=mine"]).trials()
    config = grouped(own, root=root).config
    assert isinstance(config, RunConfig)
    assert config.tracking["wandb"]["group"] == "mine"


def test_the_board_shows_running_trials_first() -> None:
    """However many trials there are, the running ones and the newest others fit on the terminal."""
    trials = [
        Result(number=n, overrides=(f"seed={n}",), status="running" if n == 3 else "done") for n in range(40)
    ]
    table = board(trials, {3: "step 5 of 9"}, height=10)
    assert list(table.columns[0].cells) == ["3", *map(str, range(31, 40))]
    assert table.caption == "1 running, 39 over, 0 waiting"


STAND_IN = """
import json, signal, sys, time
from pathlib import Path
run_dir = Path(sys.argv[1])
text = (run_dir / "config.yaml").read_text()
good = "lr: 0.5" in text
def leave(stopped_by):
    summary = {"metrics": {"accuracy": 0.9 if good else 0.1}, "steps": 2, "stopped_by": stopped_by}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: leave("SIGTERM"))
if "lr: 0.125" in text:
    sys.exit("it cannot be done")
with (run_dir / "metrics.jsonl").open("w") as metrics:
    for step in (1, 2):
        metrics.write(json.dumps({"step": step, "eval/accuracy": 0.9 if good else 0.1}) + "\\n")
if good:
    leave(None)
(run_dir / "lives").touch()
time.sleep(60)
"""
"""A trial that is over at once where its rate is 0.5, fails where it is 0.125, and else goes on for long."""


def driver(folder: Path, search: Search, rates: Sequence[str]) -> Driver:
    """A sweep of stand-ins beside each other."""
    script = folder / "stand_in.py"
    script.write_text(STAND_IN)
    asked = replace(ask(["experiment=tiny", f"optimizer.lr={','.join(rates)}"]), search=search)
    return Driver(
        search=search,
        space=asked.space,
        compose=asked.trial,
        root=folder,
        record=Record(name="tiny", overrides=(), objective=ACCURACY, trials=()),
        planned=asked.trials(),
        runner=Background(
            lambda run_dir: [sys.executable, str(script), str(run_dir)],
            seats=Seats(search.parallel, machine=Machine(cores=8)),
        ),
        screen=Lines(),
    )


@pytest.mark.slow
def test_a_trial_that_lags_is_stopped_and_the_sweep_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked to save and end, counts as pruned, keeps its curve, and a line says each thing once."""
    search = Grid(parallel=2, prune_after_trials=1)
    record = driver(tmp_path, search, ["0.5", "0.25", "0.125"]).run()
    assert [trial.status for trial in record.trials] == ["done", "pruned", "failed"]
    assert record.trials[1].curve == ((1, 0.1), (2, 0.1))
    assert (record.trials[2].message or "").startswith("it cannot be done (see ")
    assert Record.read(tmp_path) == record
    said = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    assert sorted(said) == sorted([str(t.number), s] for t in record.trials for s in ("running", t.status))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by a signal")]
)
def test_a_signal_ends_all_trials_and_starts_no_more(
    tmp_path: Path, number: signal.Signals, status: str
) -> None:
    """Ctrl-C ends them; SIGTERM reaches each, which saves; what waited is told as not run."""
    import os
    import threading
    import time

    def send() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(tmp_path.glob("*/lives"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    record = driver(tmp_path, Grid(parallel=2), ["0.25", "0.2", "0.3"]).run()
    sender.join()
    assert [trial.status for trial in record.trials] == [status, status, "not run"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_trials_have_numbers_in_order() -> None:
    """The grid's last setting varies fastest, and every combination is there once."""
    asked = ask(["experiment=tiny", "seed=1,2", "train.steps=range(1,3)"])
    trials: list[Trial] = asked.trials()
    assert [trial.overrides for trial in trials] == [
        ("seed=1", "train.steps=1"),
        ("seed=1", "train.steps=2"),
        ("seed=2", "train.steps=1"),
        ("seed=2", "train.steps=2"),
    ]
