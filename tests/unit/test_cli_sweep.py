"""``distrib train -m``: which trials there are, what is kept of each, and how the sweep ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distrib.cli.main import main
from distrib.cli.trials import ask
from distrib.config import RunConfig, load
from distrib.errors import ConfigError
from distrib.launchers.base import LaunchPlan

PLUGINS = Path(__file__).parents[1] / "plugins"
CONF = str(PLUGINS / "conf")
TINY = ["train", "-m", "experiment=tiny", "--config-dir", CONF, "launcher=recording"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty directory, with another package to import, on a wide screen."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def results(root: str = "multirun/latest") -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = json.loads((Path(root) / "sweep.json").read_text())["trials"]
    return kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=1,2"], [("seed=1",), ("seed=2",)]),
        (["seed=range(0,3)"], [("seed=0",), ("seed=1",), ("seed=2",)]),
        (["precision=glob(fp*)"], [("precision=fp16",), ("precision=fp32",), ("precision=fp64",)]),
        (["seed=4"], [()]),
        (
            ["strategy=single,ddp", "seed=4", "optimizer.lr=choice(1e-3,1e-4)"],
            [
                ("strategy=single", "optimizer.lr=0.001"),
                ("strategy=single", "optimizer.lr=0.0001"),
                ("strategy=ddp", "optimizer.lr=0.001"),
                ("strategy=ddp", "optimizer.lr=0.0001"),
            ],
        ),
        (["tracking=[tensorboard,wandb]"], [()]),
    ],
)
def test_hydras_syntax_makes_the_trials(overrides: list[str], expected: list[tuple[str, ...]]) -> None:
    """Commas, ranges, choices and globs multiply; a list is one value; each trial is told by what varies."""
    trials = ask(["experiment=tiny", *overrides]).trials()
    assert [trial.overrides for trial in trials] == expected
    assert [trial.number for trial in trials] == list(range(len(expected)))


def test_each_trial_has_its_own_configuration() -> None:
    """What varies differs, and everything else is the same."""
    one, two = (trial.config for trial in ask(["experiment=tiny", "seed=3", "train.steps=1,2"]).trials())
    assert isinstance(one, RunConfig)
    assert isinstance(two, RunConfig)
    assert (one.train.steps, two.train.steps) == (1, 2)
    assert one.seed == two.seed == 3


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.step=1,2"], "train.step"),
        (["seed=1,2", "strategy=dpp"], "strategy"),
        (["seed=interval(0,1)"], "seed"),
        (["seed=1,2("], "-m"),
    ],
)
def test_a_mistake_in_every_trial_refuses_the_sweep(overrides: list[str], key: str) -> None:
    """A sweep in which nothing can run does not start, and says why under the dotted key."""
    with pytest.raises(ConfigError) as caught:
        ask(["experiment=tiny", *overrides]).trials()
    assert caught.value.key == key


@pytest.mark.slow
def test_a_sweep_keeps_each_trial_and_ends_with_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """One run directory per trial, all of them in one table and one file, and the exit code 0."""
    assert main([*TINY, "optimizer.lr=0.5,0.25", "train.steps=3"]) == 0
    root = Path("multirun/latest").resolve()
    assert root.parent == Path("multirun/tiny").resolve()
    assert sorted(path.name for path in root.iterdir()) == [".lock", "0", "1", "sweep.html", "sweep.json"]
    assert [load(root / str(k)).optimizer["lr"] for k in (0, 1)] == [0.5, 0.25]
    kept = results()
    assert [(r["status"], r["metric"], r["value"], r["steps"]) for r in kept] == [
        ("done", "accuracy", 0.5, 3),
        ("done", "accuracy", 0.25, 3),
    ]
    assert [r["run_dir"] for r in kept] == [str(root / "0"), str(root / "1")]
    table = capsys.readouterr().out.partition("overrides")[2].partition("best")[0]
    rows = [line.split() for line in table.splitlines() if "optimizer.lr" in line]
    assert [row[:5] for row in rows] == [
        ["0", "optimizer.lr=0.5", "done", "0.5", "3"],
        ["1", "optimizer.lr=0.25", "done", "0.25", "3"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "status", "message"),
    [
        ("launcher.exit_code=0,3,0", "failed", "exit code 3; see "),
        ("launcher.refuse=null,'no hosts',null", "failed", "no hosts"),
        ("train.microbatch_size=1,99,2", "refused", "train.microbatch_size=99: is larger than"),
    ],
)
def test_one_bad_trial_does_not_stop_the_sweep(
    capsys: pytest.CaptureFixture[str], failing: str, status: str, message: str
) -> None:
    """The others run to their end, the bad one is told with its reason, and the exit code is 1."""
    assert main([*TINY, failing]) == 1
    kept = results()
    assert [result["status"] for result in kept] == ["done", status, "done"]
    assert message in kept[1]["message"]
    assert f"trial 1: {message}" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_ends_the_sweep() -> None:
    """No further trial starts; what was done so far is kept; the exit code is 130."""
    assert main([*TINY, "launcher.interrupt=false,true,false,false"]) == 130
    assert [result["status"] for result in results()] == ["done", "interrupted", "not run", "not run"]


@pytest.mark.slow
def test_the_directory_may_be_named() -> None:
    """`run_dir=` names the sweep's directory, and an old one is not written over."""
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 0
    assert len(results("here")) == 2
    assert not Path("multirun").exists()
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 2
    assert main([*TINY, "run_dir=a,b"]) == 2


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials that ended well are kept, the others run, with the sweep's own words and nothing else."""
    interrupted = "launcher.interrupt=false,true,false"
    assert main([*TINY, interrupted, "run_dir=here"]) == 130
    assert "continue          distrib train -m resume=here --config-dir" in capsys.readouterr().out
    kept = results("here")
    (Path("here/0") / "launched.json").unlink()

    record = json.loads(Path("here/sweep.json").read_text())
    for trial in record["trials"]:
        trial["overrides"] = ["launcher.interrupt=False"]
    Path("here/sweep.json").write_text(json.dumps(record))
    assert main(["train", "-m", "resume=here", "--config-dir", CONF]) == 0
    assert [result["status"] for result in results("here")] == ["done", "done", "done"]
    assert results("here")[0]["seconds"] == kept[0]["seconds"]
    assert not (Path("here/0") / "launched.json").exists()
    assert (Path("here/2") / "launched.json").exists()


@pytest.mark.slow
def test_an_end_that_nobody_noted_is_noted() -> None:
    """Killed between a trial's end and the next line of its record, the sweep does not run it again."""
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 0
    record = json.loads(Path("here/sweep.json").read_text())
    record["trials"][0].update(status="running", value=None)
    Path("here/sweep.json").write_text(json.dumps(record))
    (Path("here/0") / "launched.json").unlink()
    assert main(["train", "-m", "resume=here", "--config-dir", CONF]) == 0
    assert results("here")[0]["value"] == 0.001
    assert not (Path("here/0") / "launched.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=here/0"], "no sweep is there"),
        (["resume=nowhere"], "no sweep is there"),
        (["resume=here", "seed=1,2,3"], "seed=1,2,3: the sweep in "),
        (["resume=here", "train.steps=9"], "has no train.steps of its own"),
        (["run_dir=here", "seed=1,2", "experiment=tiny"], "go on with an old one by -m resume="),
    ],
)
def test_other_settings_do_not_go_on(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """What differs from the sweep that is there is named, and nothing runs."""
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 0
    before = Path("here/sweep.json").read_bytes()
    assert main(["train", "-m", "--config-dir", CONF, *words]) == 2
    assert message in capsys.readouterr().err
    assert Path("here/sweep.json").read_bytes() == before


def test_one_process_at_a_time_works_on_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """A second one is told that it is running."""
    from distrib.cli.sweep_resume import locked

    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 0
    with locked(Path("here")):
        assert main(["train", "-m", "resume=here", "--config-dir", CONF]) == 2
    assert "this sweep is running" in capsys.readouterr().err


@pytest.mark.slow
def test_random_trials_may_be_added() -> None:
    """A finished random search goes on with more trials, and the first ones stay."""
    words = ["sweep=random", "sweep.num_trials=2", "optimizer.lr=tag(log, interval(1e-4,1e-1))"]
    assert main([*TINY, *words, "run_dir=here"]) == 0
    first = results("here")
    assert main(["train", "-m", "resume=here", "sweep.num_trials=3", "--config-dir", CONF]) == 0
    assert results("here")[:2] == first
    assert len(results("here")) == 3


@pytest.mark.slow
def test_optuna_follows_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    """The objective is the trial's own metric; accuracy is the rate here, and the search climbs."""
    words = ["sweep=optuna", "sweep.num_trials=9", "sweep.startup_trials=4", "optimizer.lr=interval(0,1)"]
    assert main([*TINY, *words]) == 0
    values = [result["value"] for result in results()]
    assert len(values) == 9
    assert max(values[4:]) > max(values[:4])
    assert "best              trial" in capsys.readouterr().out


@pytest.mark.slow
def test_a_launcher_that_takes_many_gets_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array's launcher is handed every trial unless told otherwise; each exit code finds its trial."""
    from third_party.launchers import Recording

    calls: list[tuple[list[str], int | None]] = []

    def launch_many(self: Recording, plans: list[LaunchPlan], *, at_once: int | None) -> list[int]:
        calls.append(([plan.run_dir.name for plan in plans], at_once))
        return [self.launch(plan) if plan.run_dir.name != "1" else 3 for plan in plans]

    monkeypatch.setattr(Recording, "launch_many", launch_many)
    assert main([*TINY, "seed=1,2,3"]) == 1
    assert [result["status"] for result in results()] == ["done", "failed", "done"]
    assert main([*TINY, "seed=1,2,3", "sweep.parallel=2"]) == 1
    assert calls == [(["0", "1", "2"], None), (["0", "1", "2"], 2)]
    assert main([*TINY, "seed=1,2", "sweep.parallel=1"]) == 0  # one after another, as asked
    following = ["sweep=optuna", "sweep.num_trials=2", "optimizer.lr=interval(0,1)"]
    assert main([*TINY, *following, "launcher.exit_code=3"]) == 1  # each from the results before it
    assert main(["train", "-m", "resume=multirun/latest", "--config-dir", CONF]) == 1
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["sweep.prune_after_trials=2", "seed=1,2"], "train.eval_every"),
        (["sweep=optuna", "task=sequence_classification,causal_lm", "optimizer.lr=interval(0,1)"], "task"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], key: str
) -> None:
    """Pruning without evaluations, and results of different tasks."""
    assert main([*TINY, *words]) == 2
    assert f"distrib: {key}=" in capsys.readouterr().err


def test_a_dry_run_of_a_search_shows_what_varies(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials that follow from results cannot be listed; their space is."""
    assert main([*TINY, "--dry-run", "sweep=optuna", "optimizer.lr=interval(0,1)"]) == 0
    assert "optimizer.lr   Interval(low=0.0, high=1.0, log=False)" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_dry_run_lists_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Every trial with what sets it apart, refused ones with their reason, and nothing made."""
    assert main([*TINY, "--dry-run", "train.microbatch_size=1,99"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "trial 0   train.microbatch_size=1"
    assert "refused: train.microbatch_size=99" in second
    assert list(Path().iterdir()) == []
