"""How the outside stops this process: by a signal, or by the launcher's death."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

REPEAT_SECONDS = 2.0
"""A second signal within this time counts as the first one: a scheduler that signals every process of
a job also signals the launcher, which passes it on."""

LIFELINE = "DISTRIB_LIFELINE_FD"
"""Names the read end of a pipe whose other end only the launcher holds."""

Handler = Callable[[int, FrameType | None], None]

STOP = "stop-requested"
"""A file in a run's ``logs/`` with the name of the signal that its launcher got."""


@contextmanager
def handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Gives signals these handlers while in here; from the main thread only."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_file(run_dir: Path) -> Callable[[], str | None]:
    """What asks for the stop of a rank that its launcher cannot signal: it is on another host."""
    file = run_dir / "logs" / STOP
    return lambda: file.read_text() if file.exists() else None


class StopFlag:
    """Remembers the first SIGTERM or SIGUSR1, so that training can save and stop between two steps.

    A second SIGTERM, or a second Ctrl-C, ends the process at once. The first Ctrl-C is a
    `KeyboardInterrupt`, as ever.
    """

    def __init__(self) -> None:
        self.set_by: str | None = None
        """The signal's name, as ``SIGTERM``; None before it came."""
        self._asked_at = 0.0
        self._interrupted = False

    def install(self) -> None:
        """Takes over the signals of this process; from the main thread only."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGUSR1, self._ask)
        signal.signal(signal.SIGINT, self._interrupt)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.set_by is None:
            self.set_by, self._asked_at = signal.Signals(number).name, now
        elif number == signal.SIGTERM and now - self._asked_at > REPEAT_SECONDS:
            os._exit(128 + number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            os._exit(128 + number)
        self._interrupted = True
        raise KeyboardInterrupt


stop_flag = StopFlag()
"""The one of this process, because signals come to a process: `distrib.worker` installs it."""


def follow_launcher() -> None:
    """Kills this process and its group as soon as the launcher is gone, however it ended.

    Does nothing where no launcher of ours holds a lifeline.
    """
    lifeline = os.environ.pop(LIFELINE, None)
    if lifeline is not None:
        threading.Thread(
            target=_kill_group_at_end, args=(int(lifeline),), name="lifeline", daemon=True
        ).start()


def _kill_group_at_end(lifeline: int) -> None:
    while os.read(lifeline, 1):  # nothing is ever written: this waits for the end of the pipe
        pass
    os.killpg(0, signal.SIGKILL)
