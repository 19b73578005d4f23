"""Where a rank's main thread stands, and the stacks of all its threads in its log."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TextIO

NUM_FRAMES = 6
"""Innermost frames shown of a stack: the rest is the same on every rank, and in the log."""
MOST_CHARACTERS = 160
"""Of a line."""
LEFT_OUT = (
    "c10d_logger.py", "contextlib.py", "<frozen runpy>", "distrib/diagnosis/watchdog.py", "distrib/worker.py",
)  # fmt: skip
"""Files whose frames only pass a call on."""


def main_stack() -> list[str]:
    """The innermost calls of the main thread, the innermost last, as ``file:line in function: source``."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return _lines(traceback.extract_stack(frame)) if frame else []


def stack_of(trace: TracebackType | None) -> list[str]:
    """The same of an exception."""
    return _lines(traceback.extract_tb(trace))


def write_all(log: TextIO, why: str) -> None:
    """Every thread's stack into ``log``."""
    log.write(f"--- {time.strftime('%H:%M:%S')} {why}; the stack of every thread of this rank: ---\n")
    log.flush()
    faulthandler.dump_traceback(file=log, all_threads=True)
    log.write("--- end of stacks ---\n")
    log.flush()


def _lines(frames: traceback.StackSummary) -> list[str]:
    shown = [frame for frame in frames if not frame.filename.endswith(LEFT_OUT)]
    return [
        f"{_short(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")[
            :MOST_CHARACTERS
        ]
        for frame in shown[-NUM_FRAMES:]
    ]


def _short(path: str) -> str:
    """From the package on, where the file is an installed one."""
    for mark in ("/site-packages/", "/lib/python"):
        _, found, rest = path.rpartition(mark)
        if found:
            return rest
    return path
