"""One rank of a step: ``python -m distrib.launchers.slurm.task [<place>] <logs> <module> <argument> ...``.

A small process that forks the rank, keeps its log, and kills what it leaves behind. On standard input it
listens to whoever holds srun: a line names a signal, the end says that the launcher is gone. Signals do
not go through srun itself, because it sends them to everything a rank has started too, and a tracker's or
loader's helper must live until the rank has saved.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType

from distrib.launchers.base import Command
from distrib.launchers.forkserver import become
from distrib.launchers.logs import Mirror, open_log
from distrib.launchers.slurm.place import Place
from distrib.launchers.slurm.script import PLACE
from distrib.signals import LIFELINE
from distrib.world import World

LOOK_SECONDS = 0.05


class Task:
    """Runs ``python -m module`` as the rank of this process.

    Args:
        place: of this step in a job of several parts; None: it is the whole job.
    """

    def __init__(self, place: Place | None, logs: Path, module: str, *arguments: str) -> None:
        self._module = module
        self._arguments = arguments
        rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        self._env = dict(os.environ)
        if place is not None:
            self._env |= place.variables(World.from_env())
            rank, size = rank + place.first_rank, place.size
        command = Command(argv=tuple(sys.argv), env={}, rank=rank, host=os.uname().nodename)
        _, self._log = open_log(logs, command, size=size)
        # Rank 0 stays on screen, but for its last words; the others write to their logs alone.
        self._mirror = Mirror(self._log) if rank == 0 else None
        self._pid = 0
        self._input_is_open = True

    def run(self) -> int:
        """The rank's exit code; a signal that killed it kills this process too, so that srun names it."""
        lifeline, held = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(held)
            self._become_rank(lifeline)
            return 0
        if self._mirror:
            os.close(self._mirror.writing)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._pass_on)
        try:
            code = self._watch()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            if self._mirror:
                self._mirror.close()
        return code

    def _become_rank(self, lifeline: int) -> None:
        os.setsid()
        request = {
            "module": self._module,
            "argv": self._arguments,
            "env": self._env,
            "cwd": os.getcwd(),
            "named": [LIFELINE],
        }
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        out, err = (os.dup(1), self._mirror.writing) if self._mirror else (self._log, os.dup(self._log))
        become(request, [out, err, lifeline])

    def _watch(self) -> int:
        while True:
            self._listen()
            if self._mirror:
                self._mirror.update()
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)

    def _listen(self) -> None:
        """Waits a moment for what the launcher says."""
        ready, _, _ = select.select([0] if self._input_is_open else [], [], [], LOOK_SECONDS)
        if not ready:
            return
        said = os.read(0, 4096).decode()
        for name in said.split():
            os.kill(self._pid, signal.Signals[name])
        if not said:
            self._input_is_open = False
            os.killpg(self._pid, signal.SIGKILL)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)


def main(*arguments: str) -> int:
    """Returns in the rank itself as well, whose module has ended by then."""
    place = Place.read(arguments[0].removeprefix(PLACE)) if arguments[0].startswith(PLACE) else None
    logs, *module = arguments[1:] if place else arguments
    code = Task(place, Path(logs), *module).run()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
