"""A rank that behaves as its argument says, in a few milliseconds: ``standin.py BEHAVIOUR FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distrib.launchers.failure import FAILED, PEER_LOST
from distrib.signals import follow_launcher, stop_flag

RANK = int(os.environ["RANK"])


def fine() -> None:
    print(f"out of rank {RANK}")
    print(f"error of rank {RANK}", file=sys.stderr)


def has_imported() -> None:
    if RANK == 0:
        print("colorsys" in sys.modules)


def fails() -> None:
    if RANK == 1:
        raise ArithmeticError("the cause")
    time.sleep(60)


def first_fails() -> None:
    print("on the way", file=sys.stderr)
    if RANK == 0:
        print(FAILED.format(rank=0), file=sys.stderr)
        raise ArithmeticError("the cause")
    time.sleep(60)


def fails_once() -> None:
    print(f"token {os.environ['DISTRIB_TOKEN']}", file=sys.stderr)
    if os.environ["DISTRIB_ATTEMPT"] == "0":
        ready()
        wait_for("ready-0")  # rank 0 is ended with rank 1, and is to have said its token before
        fails()


def echoes() -> None:
    if RANK == 0:
        print(json.dumps([sys.argv[2], os.environ["HF_ODD"], str(len(sys.argv))]))


def is_killed() -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def comes_back() -> None:
    """Rank 1 is killed until it has come back twice; rank 0 ends when it has seen that."""
    if RANK == 0:
        wait_for("back-2")
        return
    rejoin = int(os.environ.get("DISTRIB_REJOIN", "0"))
    Path(sys.argv[2], f"back-{rejoin}").touch()
    if rejoin < 2:
        os.kill(os.getpid(), signal.SIGKILL)


def is_done_without() -> None:
    """Rank 1 is killed; rank 0 goes on for a while and ends well."""
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)


def all_are_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(name: str) -> None:
    while not Path(sys.argv[2], name).exists():
        time.sleep(0.01)


def loses_peer() -> None:
    """Rank 0 notices rank 1's failure before rank 1 has ended."""
    if RANK == 0:
        sys.exit(PEER_LOST)
    time.sleep(0.3)
    raise ArithmeticError("the cause")


def is_stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    if RANK == 1:
        sys.exit(3)
    time.sleep(60)


def saves() -> None:
    stop_flag.install()
    ready()
    while stop_flag.set_by is None:
        time.sleep(0.01)
    print(f"rank {RANK} saved for {stop_flag.set_by}", file=sys.stderr)


def sleeps() -> None:
    """With a helper process, as a tracker or a loader starts."""
    follow_launcher()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ready()
    time.sleep(60)


def leaves_helper() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def shows_terminal() -> None:
    print(f"rank {RANK}: terminal {sys.stdout.isatty()}", file=sys.stderr)


def shows_token() -> None:
    print(f"token {os.environ['DISTRIB_TOKEN']}", file=sys.stderr)


def ready() -> None:
    Path(sys.argv[2], f"ready-{RANK}").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
