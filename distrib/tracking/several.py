"""Many trackers as one, and the set that every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo, Tracker


class Several:
    """Hands every call to each tracker in turn; all are closed, even where one fails."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def check(self) -> None:
        for tracker in self.trackers:
            tracker.check()

    def start(self, info: RunInfo) -> None:
        for tracker in self.trackers:
            tracker.start(info)

    def step(self, record: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.step(record)

    def evaluation(self, step: int, report: Report) -> None:
        for tracker in self.trackers:
            tracker.evaluation(step, report)

    def notice(self, text: str) -> None:
        for tracker in self.trackers:
            tracker.notice(text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.finish(summary)

    def close(self) -> None:
        with ExitStack() as closing:
            for tracker in reversed(self.trackers):
                closing.callback(tracker.close)


def trackers_of_a_run(configured: Sequence[Tracker] = ()) -> Several:
    """What rank 0 is given: the run directory's files, the page, the configured trackers, the screen.

    The screen comes last, so that what it names at the end is there already.
    """
    from distrib.tracking.console import Console
    from distrib.tracking.files import RunFiles
    from distrib.tracking.page import Page

    return Several([RunFiles(), *configured, Page(), Console()])
