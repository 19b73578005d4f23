"""One rank of a step: ``srun python -m distrib.launchers.slurm.task <logs> <module> <argument> ...``.

Keeps the rank's log and listens on standard input to whoever holds srun: a line names a signal, the end
of the input says that the launcher is gone. Signals do not go through srun itself, because it sends them to
everything a rank has started too, and a tracker's or loader's helper must live until the rank has saved.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from distrib.launchers.base import Command
from distrib.launchers.failure import FAILED
from distrib.launchers.logs import open_log
from distrib.signals import stop_flag


def main(logs: str, module: str, *arguments: str) -> None:
    """Runs ``python -m module`` in this process, as this rank."""
    stop_flag.install()  # a request that comes during the imports is remembered, and does not kill
    threading.Thread(target=_listen, name="launcher", daemon=True).start()
    _keep_log(Path(logs), rank=int(os.environ["SLURM_PROCID"]))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _keep_log(folder: Path, *, rank: int) -> None:
    """Rank 0 stays on screen, its standard error in its log too; the others write to theirs alone."""
    command = Command(argv=tuple(sys.argv), env={}, rank=rank, host=os.uname().nodename)
    _, log = open_log(folder, command, size=int(os.environ["SLURM_STEP_NUM_TASKS"]))
    if rank == 0:
        sys.stderr = _Kept(sys.stderr, os.fdopen(log, "a", buffering=1, encoding="utf-8"))
        return
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.close(log)


class _Kept:
    """Rank 0's standard error: on screen and in its log, but the last words only there.

    Those come last on screen, when the job has ended.
    """

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self._screen, self._log = screen, log
        self._failed = False

    def write(self, text: str) -> int:
        self._failed = self._failed or FAILED.format(rank=0) in text
        if not self._failed:
            self._screen.write(text)
        return self._log.write(text)

    def flush(self) -> None:
        self._screen.flush()
        self._log.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._screen, name)


def _listen() -> None:
    for line in sys.stdin:
        os.kill(os.getpid(), signal.Signals[line.strip()])
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
