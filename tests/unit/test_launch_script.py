"""The scripts in launch/ hold together, and are filled in with a configuration's values."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from distrib.cli.compose import compose
from distrib.cli.launch_script import filled, launch_dir
from distrib.cli.main import main
from distrib.errors import ConfigError

SCRIPTS = sorted(launch_dir().glob("*.sh"))
WORDS = ["experiment=tiny", "strategy=ddp"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_read_by_bash(script: Path) -> None:
    """No script has an error of grammar, and each can be run as it is."""
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert script.stat().st_mode & 0o111


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A file whose path holds what a shell would read."""
    folder = tmp_path / "a b'$(touch pwned)"
    folder.mkdir()
    (folder / "hosts").write_text("h1 slots=2\nh2 slots=2 # the other\n\nh3 slots=2\n")
    return folder / "hosts"


def run_with_stubs(script: str, tmp_path: Path) -> list[str]:
    """What the script would start: programs that print their arguments, one a line, stand in."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("mpirun", "python", "torchrun"):
        stub = stubs / name
        stub.write_text('#!/bin/sh\nprintf \'%s\\n\' "$0" "$@"\n')
        stub.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script, "script", "more=1"],
        env={"PATH": f"{stubs}:/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert not list(tmp_path.rglob("pwned"))
    return done.stdout.splitlines()


def quoted(path: Path) -> str:
    text = str(path).replace("'", "\\'")
    return f"launcher.hosts='{text}'"


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("mpirun", ["-np", "4", "--hostfile"]),
        ("horovodrun", ["-np", "4", "-H", "h1:2,h2:2"]),
        ("torchrun", ["--nnodes", "2", "--nproc-per-node", "2"]),
    ],
)
def test_the_launchers_values_and_the_users_words_are_in_it(
    launcher: str, expected: list[str], hosts: Path, tmp_path: Path
) -> None:
    """It starts what the launcher was told, in one argument each; nothing in a path is run."""
    settings = [f"launcher={launcher}", quoted(hosts), "launcher.num_nodes=2", "launcher.num_processes=2"]
    words = [*WORDS, "name=it", "data.path=$(touch pwned)", *settings]
    config = compose([*WORDS, "name=it", *settings])
    script = filled(config, words)
    assert script is not None
    told = run_with_stubs(script, tmp_path)
    assert [word for word in told if word in expected] == expected
    assert told[-5:] == [*WORDS, "name=it", "data.path=$(touch pwned)", "more=1"]
    assert not [word for word in told if word.startswith("launcher")]
    if launcher == "mpirun":
        assert told[told.index("--hostfile") + 1] == str(hosts)
        assert "MASTER_ADDR=h1" in told


def test_ssh_is_distribs_own(hosts: Path, tmp_path: Path) -> None:
    """Its script says in the launcher's settings what it was told."""
    config = compose([*WORDS, "launcher=ssh", quoted(hosts), "launcher.max_restarts=2"])
    script = filled(config, [*WORDS, "launcher=ssh"])
    assert script is not None
    told = run_with_stubs(script.replace(str(hosts), "h"), tmp_path)
    assert {"launcher=ssh", "launcher.num_nodes=3", "launcher.max_restarts=2"} <= set(told)


def test_the_command_writes_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--script makes a file that can be run and never replaces one; a dry run shows the same."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *WORDS, "launcher=mpirun", "launcher.num_processes=2"]
    assert main([*words, "--script", "job.sh"]) == 0
    text = (tmp_path / "job.sh").read_text()
    assert (tmp_path / "job.sh").stat().st_mode & 0o100
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert text in capsys.readouterr().out
    assert main([*words, "--script", "job.sh"]) == 2
    assert "--script=job.sh: File exists" in capsys.readouterr().err
    assert (tmp_path / "job.sh").read_text() == text
    assert not (tmp_path / "runs").exists()


def test_a_launcher_without_a_script_is_named(tmp_path: Path) -> None:
    """Local processes need none: what there is is said."""
    from distrib.cli.launch_script import write

    with pytest.raises(ConfigError, match=r"launcher=local: has no script; there are: horovodrun, mpirun"):
        write(compose(WORDS), WORDS, tmp_path / "x")
