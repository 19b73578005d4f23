"""The command as a user meets it: help, errors, run directories, dry runs, going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distrib.cli.groups import GROUPS, options
from distrib.cli.main import COMMANDS, main
from distrib.cli.rundir import link_latest, make_fresh
from distrib.config import flatten, load

PLUGINS = Path(__file__).parents[1] / "plugins"
TINY = ["train", "experiment=tiny", "--config-dir", str(PLUGINS / "conf"), "launcher=recording"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty directory, with another package to import."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.chdir(tmp_path)


def only_run(name: str = "tiny") -> Path:
    (run_dir,) = [path for path in Path("runs", name).iterdir() if path.is_dir()]
    return run_dir


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`distrib` and `distrib --help` say what there is and where to start."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "experiment=news" in text
    assert main([]) == 2


def test_a_misspelt_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The near miss is named, on stderr, with the exit code of wrong usage."""
    assert main(["tarin"]) == 2
    out, err = capsys.readouterr()
    assert (out, "did you mean train?" in err) == ("", True)


def test_help_lists_groups_options_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that can be typed after `distrib train` is on one page."""
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    lines = [line.strip().partition(" ")[0].partition("=")[0] for line in text.splitlines()]
    for group in GROUPS:
        assert {group, *options(group)} <= set(lines), group
    settings = {key for key in flatten(load_tiny()) if key.startswith(("train.", "checkpoint.", "timeouts."))}
    assert settings | {"seed", "resume", "run_dir", "plugins"} <= set(lines)
    assert max(map(len, text.splitlines())) <= 120


def load_tiny() -> object:
    from distrib.cli.compose import compose

    return compose(["experiment=tiny"])


@pytest.mark.slow
def test_an_error_is_a_message_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, nothing on stdout, and nothing made."""
    assert main([*TINY, "train.step=3"]) == 2
    out, err = capsys.readouterr()
    assert err == "distrib: train.step=3: " + err.partition(": train.step=3: ")[2]
    assert "did you mean train.steps?" in err
    assert "Traceback" not in err
    assert out == ""
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_train_makes_a_run_directory_and_starts_it(capsys: pytest.CaptureFixture[str]) -> None:
    """One new directory with the whole configuration in it, linked as the latest, named on screen."""
    assert main([*TINY, "seed=4", "train.steps=3"]) == 0
    run_dir = only_run()
    config = load(run_dir)
    assert (config.seed, config.train.steps, config.run_dir) == (4, 3, None)
    assert Path("runs/latest").resolve() == run_dir.resolve()
    assert str(run_dir) in capsys.readouterr().out
    (argv,) = json.loads((run_dir / "launched.json").read_text())
    assert argv == [sys.executable, "-m", "distrib.worker", str(run_dir.resolve())]


@pytest.mark.slow
def test_flags_may_stand_anywhere() -> None:
    """`distrib train a=1 --config-dir x b=2` means what it says."""
    assert main([*TINY[:2], "--config-dir", str(PLUGINS / "conf"), "launcher=recording", "seed=9"]) == 0
    assert load(only_run()).seed == 9


@pytest.mark.parametrize(("ending", "code"), [("launcher.exit_code=7", 7), ("launcher.interrupt=true", 130)])
def test_the_exit_code_is_the_jobs(ending: str, code: int) -> None:
    """What the job ended with is what the command ends with; Ctrl-C is 130."""
    assert main([*TINY, ending]) == code


@pytest.mark.slow
def test_a_launcher_that_gives_up_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the launcher reaches the screen as it was written."""
    assert main([*TINY, "launcher.refuse=no hosts"]) == 1
    assert capsys.readouterr().err == "distrib: no hosts\n"


def test_dry_run_shows_everything_and_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration, how the global batch is cut and each command; no file is written."""
    assert (
        main([*TINY, "--dry-run", "strategy=ddp", "launcher.num_processes=3", "train.microbatch_size=2"]) == 0
    )
    text = capsys.readouterr().out
    head = text.partition("\nglobal batch")[0]
    assert yaml.safe_load(head)["launcher"]["num_processes"] == 3
    assert "8 of 2 examples per step" in text
    assert "accumulation     3, 3, 2 microbatches per data shard" in text
    assert [line for line in text.splitlines() if "distrib.worker" in line][2].startswith(
        "  rank 2 on here:  RANK=2 "
    )
    assert list(Path().iterdir()) == []


def test_runs_of_the_same_second_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands at once never share a directory."""
    folders = {make_fresh(Path("runs/x")) for _ in range(4)}
    assert len(folders) == 4
    assert all(folder.parent == Path("runs/x").resolve() for folder in folders)


def test_the_link_is_replaced_and_relative() -> None:
    """`runs/latest` follows the newest run and survives moving the whole tree."""
    for _ in range(2):
        newest = make_fresh(Path("runs/x"))
        link_latest(Path("runs"), newest)
    assert os.readlink("runs/latest") == f"x/{newest.name}"
    assert Path("runs/latest").resolve() == newest
    assert sorted(path.name for path in Path("runs").iterdir()) == ["latest", "x"]


@pytest.mark.slow
def test_a_directory_that_holds_a_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """`run_dir=` of an older run is refused, with the command that goes on with it."""
    assert main([*TINY, "run_dir=here"]) == 0
    assert load("here").name == "tiny"
    assert not Path("runs").exists()
    assert main([*TINY, "run_dir=here", "seed=3"]) == 2
    assert f"resume={Path('here').resolve()}" in capsys.readouterr().err
    assert load("here").seed == 0


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_directory(capsys: pytest.CaptureFixture[str]) -> None:
    """No new directory; the new configuration is written; what changes the result is told."""
    assert main(TINY) == 0
    before = only_run()
    (before / "launched.json").unlink()
    capsys.readouterr()
    go_on = ["train", "resume=runs/latest", "plugins=[third_party]", "train.microbatch_size=2"]
    assert main([*go_on, "optimizer.lr=0.5"]) == 0
    assert only_run() == before
    assert (before / "launched.json").exists()
    config = load(before)
    assert (config.optimizer["lr"], config.resume) == (0.5, str(before.resolve()))
    text = capsys.readouterr().out
    assert "optimizer.lr: 0.001 -> 0.5 (this changes the result)" in text
    assert "microbatch_size" not in text


@pytest.mark.slow
def test_a_refused_resume_leaves_the_run_as_it_was() -> None:
    """A mistake on the command line does not touch the stored configuration."""
    assert main(TINY) == 0
    stored = (only_run() / "config.yaml").read_bytes()
    assert main(["train", "resume=runs/latest", "plugins=[third_party]", "train.stops=4"]) == 2
    assert (only_run() / "config.yaml").read_bytes() == stored


@pytest.mark.timeout(60)
def test_the_command_needs_no_torch() -> None:
    """Composing, checking and planning a run import none of the heavy libraries."""
    program = (
        "import sys\n"
        "from distrib.cli.main import main\n"
        "assert main(['train', 'experiment=tiny', 'strategy=ddp', '--dry-run']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'rich', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50, stdout=subprocess.DEVNULL)
