"""The screen: a live bar on a terminal, plain lines elsewhere, and what to do next at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from distrib.tracking.meter import Meter
from distrib.tracking.text import number_text, short_text

if TYPE_CHECKING:
    from rich.console import Console as Screen
    from rich.console import RenderableType
    from rich.live import Live

    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo


class Console:
    """Shows the run on standard output and leaves the same, plain, in ``logs/rank-0.log``.

    Args:
        every_seconds: between two plain lines.
        redraws_per_second: of the live bar; at most 10.
    """

    def __init__(self, *, every_seconds: float = 5.0, redraws_per_second: float = 4.0) -> None:
        self.every_seconds = every_seconds
        self.redraws_per_second = min(redraws_per_second, 10.0)
        self._info: RunInfo | None = None
        self._meter = Meter(num_steps=0, first_step=0)
        self._report: Report | None = None
        self._log: TextIO | None = None
        self._early: list[str] = []
        self._live: Live | None = None
        self._screen: Screen | None = None
        self._due = 0.0
        self._printed = 0

    def check(self) -> None: ...

    def start(self, info: RunInfo) -> None:
        self._info, self._report, self._due = info, None, 0.0
        self._meter = Meter(num_steps=info.num_steps, first_step=info.first_step)
        (info.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._log = (info.run_dir / "logs" / "rank-0.log").open("a", buffering=1, encoding="utf-8")
        self._log.writelines(f"{line}\n" for line in self._early)  # said before there was a log
        self._early.clear()
        for line in _opening(info):
            self._say(line)
        if sys.stdout.isatty():
            self._start_bar()

    def step(self, record: Mapping[str, float]) -> None:
        self._meter.update(record)
        if time.monotonic() >= self._due:
            self._line()

    def evaluation(self, step: int, report: Report) -> None:
        self._report = report
        numbers = "  ".join(f"{name} {number_text(value)}" for name, value in report.metrics.items())
        self._say(f"held out, step {step}:  {numbers}")

    def notice(self, text: str) -> None:
        self._say(f"notice: {text}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        from distrib.tracking.closing import closing

        self._stop_bar()
        if self._printed != self._meter.step and self._meter.last:
            self._line()
        if self._info is not None:
            for part in closing(self._info, report=self._report, summary=summary):
                self._show(part)

    def close(self) -> None:
        self._stop_bar()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _line(self) -> None:
        self._due = time.monotonic() + self.every_seconds
        self._printed = self._meter.step
        self._say(self._meter.line(), screen=self._live is None)

    def _say(self, text: str, *, screen: bool = True) -> None:
        if self._log is None:
            self._early.append(text)
        else:
            self._log.write(text + "\n")
        if screen and self._screen is not None:
            self._screen.print(text, markup=False, highlight=False, soft_wrap=True)
        elif screen:
            print(text, flush=True)

    def _show(self, part: RenderableType) -> None:
        from rich.console import Console as Screen

        screens = [self._screen or Screen(file=sys.stdout, width=None if sys.stdout.isatty() else 100)]
        screens += [Screen(file=self._log, width=100)] if self._log is not None else []
        for screen in screens:
            screen.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))

    def _start_bar(self) -> None:
        from rich.console import Console as Screen

        from distrib.tracking.bar import live_bar

        self._screen = Screen(file=sys.stdout)
        self._live = live_bar(self._meter, screen=self._screen, redraws_per_second=self.redraws_per_second)
        self._live.start()

    def _stop_bar(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _opening(info: RunInfo) -> list[str]:
    ranks = f"{info.world_size} process{'es' if info.world_size > 1 else ''}"
    begin = f"goes on after step {info.first_step} of" if info.first_step else "trains"
    counted = {name: value for name, value in info.notes.items() if value != 0}
    notes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counted.items())
    facts = f"{info.strategy} on {ranks}, {short_text(info.num_parameters)} parameters"
    lines = [f"{info.name} {begin} {info.num_steps} steps: {facts}"]
    return [*lines, f"data: {notes}"] if notes else lines
