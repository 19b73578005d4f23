"""What is seen of a sweep while it runs: a line per trial."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from distrib.sweeps.results import STATUSES, Result
from distrib.tracking.text import clock_text, number_text

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

ROOM = 6
"""Lines of the terminal left free above and below the board."""


class Screen(Protocol):
    """Shows how trials stand."""

    def show(self, changed: Result | None, trials: Sequence[Result], steps: Mapping[int, str]) -> None:
        """Called whenever a trial starts or ends, and now and then.

        Args:
            changed: the trial that started or ended, or None.
            trials: all so far.
            steps: how far the running ones are, by number.
        """

    def close(self) -> None: ...


class Headings:
    """A heading for each trial, above its own output."""

    def show(self, changed: Result | None, trials: Sequence[Result], steps: Mapping[int, str]) -> None:
        """As `Screen.show`."""
        if changed is not None and changed.status == "running":
            print(f"\ntrial {changed.number}   {' '.join(changed.overrides)}", flush=True)

    def close(self) -> None: ...


class Lines:
    """A line whenever a trial starts or ends: for a file, a pipe, a batch job."""

    def show(self, changed: Result | None, trials: Sequence[Result], steps: Mapping[int, str]) -> None:
        """As `Screen.show`."""
        if changed is None:
            return
        words = " ".join(changed.overrides)
        print(f"trial {changed.number:<4} {changed.status:<9} {words}{_ending(changed)}", flush=True)

    def close(self) -> None: ...


class Board:
    """A table that is drawn anew in place: for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live: Live | None = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, changed: Result | None, trials: Sequence[Result], steps: Mapping[int, str]) -> None:
        """As `Screen.show`."""
        if self._live is not None:
            self._live.update(board(trials, steps, height=self._console.height - ROOM), refresh=True)

    def close(self) -> None:
        """The table at the end of the sweep takes its place."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def board(trials: Sequence[Result], steps: Mapping[int, str], *, height: int) -> Table:
    """The running trials and as many of the others, the newest first, as there are lines for."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    running = [trial for trial in trials if trial.status == "running"]
    ended = [trial for trial in trials if trial.status not in ("running", "waiting")]
    room = max(1, height - len(running))
    waiting = len(trials) - len(running) - len(ended)
    caption = f"{len(running)} running, {len(ended)} over, {waiting} waiting"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for column in ("trial", "overrides", "status", "progress"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for trial in sorted([*ended[-room:], *running], key=lambda trial: trial.number):
        progress = steps.get(trial.number, "") if trial.status == "running" else _ending(trial).strip()
        status = Text(trial.status, style=STATUSES[trial.status])
        table.add_row(str(trial.number), Text(" ".join(trial.overrides)), status, Text(progress))
    return table


def screen_of(*, plain: bool) -> Screen:
    """The one that suits where standard output goes; ``plain`` where the trials write to it themselves."""
    if plain:
        return Headings()
    return Board() if sys.stdout.isatty() else Lines()


def _ending(result: Result) -> str:
    parts = []
    if result.value is not None:
        parts.append(f"{result.metric} {number_text(result.value)}")
    if result.steps is not None:
        parts.append(f"{result.steps} steps")
    if result.seconds is not None:
        parts.append(clock_text(result.seconds))
    if result.message is not None:
        parts.append(result.message.splitlines()[0])
    return "   " + ", ".join(parts) if parts else ""
