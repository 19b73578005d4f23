"""How long a thread had work to do, apart from how long it waited."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds on a processor, nanoseconds ready but without one, time slices."""


def active_seconds() -> float:
    """Time in which this thread ran or, where Linux says so, was ready and had to wait for a processor.

    What is left of the wall time it slept: for another rank, for an accelerator, for a disk. Without
    the second part, other programs on the machine would look like communication.
    """
    with contextlib.suppress(OSError, ValueError):
        running, ready = SCHEDSTAT.read_text().split()[:2]
        return (int(running) + int(ready)) / 1e9
    return time.thread_time()
