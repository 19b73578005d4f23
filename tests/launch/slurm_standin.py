"""A rank of a SLURM step that behaves as its argument says: ``slurm_standin BEHAVIOUR FOLDER``.

Its run is a number of steps counted in a file, saved as a checkpoint the launcher can see.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distrib.launchers.failure import FAILED, PEER_LOST
from distrib.signals import stop_flag
from distrib.world import World

RANK = World.from_env().rank
RESUMED = os.environ.get("DISTRIB_RESUME")


def fine() -> None:
    print(f"out of rank {RANK}", flush=True)
    print(f"error of rank {RANK} on {os.uname().nodename}", file=sys.stderr)


def fails() -> None:
    if RANK == 1:
        print(FAILED.format(rank=1), file=sys.stderr)
        raise ArithmeticError("the cause")
    helper()
    ready()
    time.sleep(60)


def last_fails() -> None:
    if World.from_env().size == RANK + 1:
        print(FAILED.format(rank=RANK), file=sys.stderr)
        raise ArithmeticError("the cause")
    time.sleep(60)


def first_fails() -> None:
    print("on the way", file=sys.stderr)
    if RANK == 0:
        print(FAILED.format(rank=0), file=sys.stderr)
        print("the cause", file=sys.stderr)
        sys.exit(3)
    time.sleep(60)


def is_killed() -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def loses_peer() -> None:
    """Rank 0 notices rank 1's failure before rank 1 has ended."""
    if RANK == 0:
        sys.exit(PEER_LOST)
    time.sleep(0.5)
    raise ArithmeticError("the cause")


def sleeps() -> None:
    helper()
    ready()
    time.sleep(120)


def saves() -> None:
    """Until it is asked to stop; done when it has been before."""
    stop_flag.install()
    helper()
    ready()
    while stop_flag.set_by is None and RESUMED is None:
        time.sleep(0.02)
    print(f"rank {RANK} stops by {stop_flag.set_by}, resumed {RESUMED}", file=sys.stderr)
    if RANK == 0:
        checkpoint(2 if RESUMED else 1, stopped_by=stop_flag.set_by)


def comes_back() -> None:
    """Rank 1 dies in the first start, after a checkpoint."""
    if RESUMED is None and RANK == 0:
        checkpoint(1, stopped_by=None)
    if RESUMED is None and RANK == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if RESUMED is None:
        time.sleep(60)
    print(f"rank {RANK} resumed {RESUMED}", file=sys.stderr)


def goes_on() -> None:
    """Saves once, and ends when it was resumed."""
    print(f"rank {RANK} resumed {RESUMED} on {os.uname().nodename}", file=sys.stderr)
    if RESUMED is None:
        if RANK == 0:
            checkpoint(1, stopped_by=None)
        ready()
        time.sleep(120)


def is_done_without() -> None:
    """Rank 1 is one that the job can do without."""
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(2)
    print("went on to its end")


def ready() -> None:
    Path(sys.argv[2], f"ready-{RANK}").touch()


def helper() -> None:
    """As a tracker or a loader starts, which has to live until the rank has saved."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", sys.argv[2]])


def checkpoint(step: int, *, stopped_by: str | None) -> None:
    folder = Path(sys.argv[2], "checkpoints", f"step-{step:08d}")
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text("{}")
    Path(sys.argv[2], "summary.json").write_text(json.dumps({"stopped_by": stopped_by}))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
