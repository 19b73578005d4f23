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


def test_ctrl_c_ends_the_sweep() -> None:
    """No further trial starts; what was done so far is kept; the exit code is 130."""
    assert main([*TINY, "launcher.interrupt=false,true,false,false"]) == 130
    assert [result["status"] for result in results()] == ["done", "interrupted", "not run", "not run"]


def test_the_directory_may_be_named() -> None:
    """`run_dir=` names the sweep's directory, and an old one is not written over."""
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 0
    assert len(results("here")) == 2
    assert not Path("multirun").exists()
    assert main([*TINY, "seed=1,2", "run_dir=here"]) == 2
    assert main([*TINY, "run_dir=a,b"]) == 2


def test_a_sweep_goes_on_with_nothing() -> None:
    """`resume` and `-m` exclude each other."""
    assert main([*TINY, "run_dir=here"]) == 0
    assert main(["train", "-m", "resume=here/0", "seed=1,2", "plugins=[third_party]"]) == 2


def test_dry_run_lists_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Every trial with what sets it apart, refused ones with their reason, and nothing made."""
    assert main([*TINY, "--dry-run", "train.microbatch_size=1,99"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "trial 0   train.microbatch_size=1"
    assert "refused: train.microbatch_size=99" in second
    assert list(Path().iterdir()) == []
