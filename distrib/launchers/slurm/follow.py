"""Follows a submitted job: what it waits for, what it says, how it ends."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from distrib.errors import LaunchError
from distrib.launchers.slurm import client
from distrib.launchers.slurm.client import JobState
from distrib.signals import handling

LOOK_SECONDS = 0.2
"""Between two looks at the log."""
FIRST_POLL, LAST_POLL, SLOWER = 1.0, 5.0, 1.2
"""Seconds between two questions to the controller: after a change, at most, and the growth in between."""
HOPELESS_SECONDS = 5.0
"""How long a job must have a reason that no waiting ends before it is given up."""
PATIENCE_SECONDS = 600.0
"""How long the controller may not answer: one that is restarted keeps its jobs."""
SETTLE_SECONDS = 1.0
"""After the end: a shared file system may show the last lines late."""

INTERRUPTED = 130


class Tail:
    """What is new in a log, on screen."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0

    def show(self) -> bool:
        """Whether there was anything."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return False
        self._at += len(new)
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()
        return bool(new)

    def finish(self) -> None:
        """Until nothing more comes."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < SETTLE_SECONDS:
            if self.show():
                quiet_since = time.monotonic()
            time.sleep(LOOK_SECONDS)


class Follower:
    """Stays until a job has ended; Ctrl-C cancels it.

    Args:
        job: its number.
        log: what is shown of it as it grows; None: only how it fares.
    """

    def __init__(self, job: str, *, log: Path | None = None) -> None:
        self._job = job
        self._tail = Tail(log) if log else None
        self._seen: dict[str, str] = {}
        self._hopeless_since: float | None = None
        self._answered_at = time.monotonic()
        self._interrupts = 0

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM has cancelled the job."""
        return self._interrupts > 0

    def run(self) -> Sequence[JobState]:
        """The last state of the job, or of every task of an array.

        Raises `LaunchError` where it can never start, SLURM has forgotten it, or does not answer.
        """
        with handling({signal.SIGINT: self._interrupt, signal.SIGTERM: self._interrupt}):
            states = self._watch()
        if self._tail:
            self._tail.finish()
        return states

    def _watch(self) -> Sequence[JobState]:
        due, pause, cancelled = 0.0, FIRST_POLL, False
        while True:
            if self._tail:
                self._tail.show()
            if self.interrupted and not cancelled:
                _say(f"cancelling job {self._job}")
                client.cancel(self._job)
                cancelled, due = True, 0.0
            if time.monotonic() >= due:
                states = self._ask()
                pause = FIRST_POLL if self._announce(states) else min(pause * SLOWER, LAST_POLL)
                due = time.monotonic() + pause
                if states and (all(state.ended for state in states) or self._interrupts > 1):
                    return states
                self._check_hope(states)
            time.sleep(LOOK_SECONDS)

    def _ask(self) -> Sequence[JobState]:
        """Empty where the controller does not answer; it is asked again."""
        try:
            states = client.states(self._job)
        except LaunchError as error:
            if time.monotonic() - self._answered_at > PATIENCE_SECONDS:
                raise
            if self._seen.get("") != str(error):
                _say(f"notice: {error}; asking again")
            self._seen[""] = str(error)
            return ()
        self._answered_at = time.monotonic()
        if not states:
            raise LaunchError(f"SLURM no longer knows job {self._job}: how it ended is not known")
        return states

    def _announce(self, states: Sequence[JobState]) -> bool:
        """Says what has changed, and whether anything has."""
        changed = [state for state in states if self._seen.get(state.job) != state.describe()]
        for state in changed:
            self._seen[state.job] = state.describe()
            if not (state.ended and self._tail):
                _say(f"job {state.job}   {state.describe()}")
        return bool(changed)

    def _check_hope(self, states: Sequence[JobState]) -> None:
        hopeless = [state for state in states if state.hopeless]
        if not hopeless:
            self._hopeless_since = None
            return
        self._hopeless_since = self._hopeless_since or time.monotonic()
        if time.monotonic() - self._hopeless_since > HOPELESS_SECONDS:
            client.cancel(self._job)
            raise LaunchError(
                f"SLURM will never start job {hopeless[0].job} as it is asked for ({hopeless[0].reason}); it "
                "is cancelled. Ask for what the partition has: `sinfo --long` and `scontrol show partition`"
            )

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1


def decisive(parts: Sequence[JobState]) -> JobState:
    """The state that says how a job ended whose parts have one each: the first that did not end well."""
    return next((state for state in parts if state.state != "COMPLETED"), parts[0])


def verdict(state: JobState, *, interrupted: bool) -> tuple[int, str]:
    """The exit code a job's last state stands for, and what to say where its log does not."""
    if interrupted:
        return INTERRUPTED, ""
    if state.state == "COMPLETED":
        return 0, ""
    if state.state == "FAILED":
        return state.code or 1, ""
    meaning = {
        "TIMEOUT": "ran into its time limit: raise launcher.time, or let it go on by resume=<run directory>",
        "CANCELLED": "was cancelled",
        "OUT_OF_MEMORY": "needed more memory than it asked for: raise launcher.mem",
        "NODE_FAIL": "lost a node and was not to be started again (launcher.requeue)",
    }
    return 1, f"job {state.job} {meaning.get(state.state, f'ended as {state.state}')}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
