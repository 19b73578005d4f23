"""The script behind `make horovod`, with stand-ins for compilers and interpreter: nothing is compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "horovod"
TOOLS = (
    "bash",
    "basename",
    "cat",
    "chmod",
    "dirname",
    "find",
    "flock",
    "mkdir",
    "mktemp",
    "mv",
    "nproc",
    "rm",
    "tail",
)
COMPILERS = ("g++", "cmake")

# Notes how it was called; builds an empty wheel, and fails to where the test says so.
INTERPRETER = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*torch.__version__*) echo horovod-0.28.1-gloo-torch-9.9 ;;
*"pip wheel"*)
    if [ -n "$BREAK" ]; then echo "error: no such header"; exit 1; fi
    cat "$CXX" >>"$CALLS"
    while [ "$1" != --wheel-dir ]; do shift; done
    : >"$2/horovod-0.28.1-py3-none-any.whl" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with only the tools named here on the path, and stand-ins for compilers."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    for name in (*COMPILERS, "python"):
        (tools / name).write_text(INTERPRETER)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("HOROVOD_WITH_MPI", raising=False)
    return tmp_path


def install(machine: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs the script; what it did and the calls it made."""
    (machine / "calls").write_text("")
    done = subprocess.run(
        [str(machine / "bin" / "bash"), str(SCRIPT), str(machine / "bin" / "python")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done, (machine / "calls").read_text()


def test_it_is_compiled_once(machine: Path) -> None:
    """The first call builds with C++17 and keeps the wheel; the second installs that one."""
    done, calls = install(machine)
    assert done.returncode == 0, done.stderr
    assert "--no-binary horovod" in calls
    assert "-std=c++17" in calls
    (wheel,) = (machine / "cache" / "distrib" / "wheels").rglob("*.whl")
    assert wheel.parent.name == "horovod-0.28.1-gloo-torch-9.9"
    again, calls = install(machine)
    assert again.returncode == 0, again.stderr
    assert "pip wheel" not in calls
    assert f"--force-reinstall --no-deps {wheel}" in calls


def test_a_missing_compiler_is_named(machine: Path) -> None:
    """Without a compiler: the package that brings it, before anything is downloaded."""
    (machine / "bin" / "g++").unlink()
    done, calls = install(machine)
    assert done.returncode == 1
    assert "apt-get install g++" in done.stderr
    assert "pip" not in calls


def test_mpi_needs_its_headers(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The MPI variant names the packages of an MPI."""
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    done, _ = install(machine)
    assert done.returncode == 1
    assert "apt-get install libopenmpi-dev openmpi-bin" in done.stderr


def test_a_failed_build_is_shown_and_not_kept(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the compiler's output is on screen, and the next call tries again."""
    monkeypatch.setenv("BREAK", "1")
    done, _ = install(machine)
    assert done.returncode == 1
    assert "error: no such header" in done.stderr
    monkeypatch.delenv("BREAK")
    assert install(machine)[0].returncode == 0
