"""How trials run: here and one after another with their output on screen, or beside each other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distrib.config import RunConfig
from distrib.errors import DistribError
from distrib.signals import LIFELINE, handling
from distrib.sweeps.results import INTERRUPTED
from distrib.sweeps.seats import Seats

RunTrial = Callable[[RunConfig, Path], int]
"""Trains one configuration in a run directory to its end; returns an exit code."""

POLL_SECONDS = 0.05
WATCH_SECONDS = 0.5
"""Between two looks at what running trials have written."""
END_SECONDS = 10.0
"""Between asking trials to end and killing them; a launcher gives its own ranks 3."""
TRIAL_LOG = "trial.log"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that is over."""

    number: int
    code: int
    seconds: float
    message: str | None = None
    """Why it failed, where that is known."""


class Runner(ABC):
    """Runs trials. A context manager: leaving it ends whatever still runs."""

    asked_to_stop: bool = False
    """After a signal: no further trial may start."""

    @abstractmethod
    def fits(self, processes: int) -> bool:
        """Whether a trial of so many processes may start now."""

    @abstractmethod
    def start(self, number: int, config: RunConfig, run_dir: Path, *, processes: int) -> None:
        """Starts a trial whose directory holds its configuration."""

    @abstractmethod
    def wait(self) -> list[Ended]:
        """Those that ended, after a moment's waiting; none where it is time to look at the running ones."""

    def stop(self, number: int) -> None:
        """Asks a trial to save and end; only where trials run beside this process, as pruning needs."""
        raise NotImplementedError

    def __enter__(self) -> Runner:
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...


class Foreground(Runner):
    """One trial after another in this process, which passes on its output and signals."""

    def __init__(self, run_trial: RunTrial) -> None:
        self._run_trial = run_trial
        self._ended: list[Ended] = []

    def fits(self, processes: int) -> bool:
        """As `Runner.fits`."""
        return not self._ended

    def start(self, number: int, config: RunConfig, run_dir: Path, *, processes: int) -> None:
        """Runs the trial to its end."""
        started, message = time.monotonic(), None
        try:
            code = self._run_trial(config, run_dir)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except DistribError as error:
            code, message = error.exit_code, str(error)
        seconds = time.monotonic() - started
        self._ended = [Ended(number=number, code=code, seconds=seconds, message=message)]

    def wait(self) -> list[Ended]:
        """As `Runner.wait`."""
        ended, self._ended = self._ended, []
        return ended

    def __exit__(self, *error: object) -> None: ...


LaunchTogether = Callable[[Sequence[Path]], list[int]]
"""Runs the configurations in many run directories; returns their exit codes in the same order."""


class Together(Runner):
    """All trials as one job of a launcher that takes many, as a job array."""

    def __init__(self, launch: LaunchTogether) -> None:
        self._launch = launch
        self._started: dict[int, Path] = {}

    def fits(self, processes: int) -> bool:
        """As `Runner.fits`: where they find room is the launcher's business."""
        return True

    def start(self, number: int, config: RunConfig, run_dir: Path, *, processes: int) -> None:
        """Adds the trial to the job."""
        self._started[number] = run_dir

    def wait(self) -> list[Ended]:
        """Runs the job to its end."""
        started, message = time.monotonic(), None
        try:
            codes = self._launch(list(self._started.values()))
        except KeyboardInterrupt:
            codes = [INTERRUPTED] * len(self._started)
        except DistribError as error:
            codes, message = [error.exit_code] * len(self._started), str(error)
        seconds = time.monotonic() - started
        numbers, self._started = list(self._started), {}
        return [
            Ended(number=number, code=code, seconds=seconds, message=message)
            for number, code in zip(numbers, codes, strict=True)
        ]

    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial's own process, which watches over its ranks."""

    process: subprocess.Popen[bytes]
    started: float
    log: Path

    def send(self, number: signal.Signals) -> None:
        """To that process alone: it passes on what its ranks are to know."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Background(Runner):
    """Each trial as a process of its own beside the others, with its output in ``logs/trial.log``.

    Trials end with this process, however it ends: they hold the other end of a pipe.

    Args:
        command: what trains the configuration in a run directory, and exits with the job's code.
        seats: how many at once, and on which part of the machine.
    """

    def __init__(self, command: Callable[[Path], Sequence[str]], *, seats: Seats) -> None:
        self._command = command
        self._seats = seats
        self._running: dict[int, Running] = {}
        self._interrupted = False
        self._passed_on: signal.Signals | None = None
        self._handling = ExitStack()
        self._lifeline, self._held = os.pipe()

    def fits(self, processes: int) -> bool:
        """As `Runner.fits`."""
        return self._seats.fits(processes)

    def start(self, number: int, config: RunConfig, run_dir: Path, *, processes: int) -> None:
        """As `Runner.start`."""
        log = run_dir / "logs" / TRIAL_LOG
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._command(run_dir),
                env={**os.environ, **self._seats.take(number, processes), LIFELINE: str(self._lifeline)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lifeline],
                start_new_session=True,  # the terminal's Ctrl-C comes to this process alone
            )
        self._running[number] = Running(process=process, started=time.monotonic(), log=log)
        if self._passed_on:  # it came while this trial was being started
            self._running[number].send(self._passed_on)

    def wait(self) -> list[Ended]:
        """As `Runner.wait`; after Ctrl-C only when every trial has ended."""
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline and not self._interrupted:
            if ended := list(self._collect()):
                return ended
            time.sleep(POLL_SECONDS)
        if not self._interrupted:
            return []
        self._end_all()
        return list(self._collect())

    def stop(self, number: int) -> None:
        """As `Runner.stop`."""
        self._running[number].send(signal.SIGTERM)

    def _collect(self) -> Iterator[Ended]:
        for number, trial in list(self._running.items()):
            code = trial.process.poll()
            if code is None:
                continue
            del self._running[number]
            self._seats.leave(number)
            if code and (self._interrupted or code == -(self._passed_on or 0)):
                code = INTERRUPTED
            yield Ended(
                number=number,
                code=128 - code if code < 0 else code,
                seconds=time.monotonic() - trial.started,
                message=_last_line(trial.log) if code else None,
            )

    def _end_all(self) -> None:
        for trial in self._running.values():
            trial.send(signal.SIGINT)
        deadline = time.monotonic() + END_SECONDS
        for trial in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                trial.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            trial.process.kill()  # its ranks follow it: it holds their lifeline
            trial.process.wait()

    def __enter__(self) -> Runner:
        handlers = {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: self._pass_on,
            signal.SIGUSR1: self._pass_on,
        }
        self._handling.enter_context(handling(handlers))
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()
        self._handling.close()
        os.close(self._lifeline)
        os.close(self._held)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = self.asked_to_stop = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop, self._passed_on = True, signal.Signals(number)
        for trial in list(self._running.values()):
            trial.send(self._passed_on)


def _last_line(log: Path) -> str | None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    return f"{words[-1]} (see {log.parent})" if words else None
