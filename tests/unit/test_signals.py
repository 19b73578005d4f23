"""A signal asks once for an orderly stop; a second one, meant as such, ends the process at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from distrib import signals
signals.REPEAT_SECONDS = float(sys.argv[1])
signals.stop_flag.install()
try:
    for name in sys.argv[2:]:
        os.kill(os.getpid(), signal.Signals[name])
except KeyboardInterrupt:
    print("interrupted")
    os.kill(os.getpid(), signal.SIGINT)
print("asked by", signals.stop_flag.set_by)
"""


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (["2"], 0, "asked by None\n"),
        (["2", "SIGUSR1"], 0, "asked by SIGUSR1\n"),
        (["2", "SIGTERM"], 0, "asked by SIGTERM\n"),
        # A scheduler signals the rank and its launcher, which passes it on: one request.
        (["2", "SIGTERM", "SIGTERM"], 0, "asked by SIGTERM\n"),
        (["0", "SIGTERM", "SIGTERM"], 143, ""),
        (["0", "SIGUSR1", "SIGTERM"], 143, ""),
        (["0", "SIGTERM", "SIGUSR1"], 0, "asked by SIGTERM\n"),
        (["2", "SIGINT"], 130, "interrupted\n"),
    ],
)
def test_what_signals_do(words: list[str], code: int, out: str) -> None:
    """The first request is remembered by name; a later SIGTERM, and a second Ctrl-C, do not wait."""
    command = [sys.executable, "-u", "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
