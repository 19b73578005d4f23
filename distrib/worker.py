"""One rank: ``python -m distrib.worker <run directory>``, started by a launcher."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from distrib.config import RunConfig, digest, flatten, load
from distrib.errors import DistribError
from distrib.launchers.failure import FAILED, LOST, PEER_LOST
from distrib.launchers.logs import as_a_guest
from distrib.rank_variables import GUEST, RESUME
from distrib.signals import follow_launcher, stop_file, stop_flag
from distrib.world import World

INTERRUPTED = 130
WATCHDOG_SECONDS = 10.0
"""How much later than the meeting's own time limit a rank that hangs before it is ended."""


def main(argv: Sequence[str]) -> int:
    """Meets the other ranks and trains; returns the exit code."""
    follow_launcher()
    stop_flag.install()
    world, run_dir = World(), Path(argv[0])
    with ExitStack() as stack:
        try:
            world = World.from_env()
            announce_failure(world)
            if GUEST in os.environ:
                stack.enter_context(as_a_guest(run_dir / "logs", rank=world.rank))
            config = going_on(load(run_dir))
            work(config, run_dir=run_dir, world=join(config, world))
        except DistribError as error:
            say_last(world, str(error), lost=error.exit_code == PEER_LOST)
            return error.exit_code
        except RuntimeError as error:
            from distrib.rendezvous import lost_peer

            if not lost_peer(error):
                raise
            say_last(world, traceback.format_exc().rstrip(), lost=True)
            return PEER_LOST
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def say_last(world: World, words: str, *, lost: bool) -> None:
    """This rank's last words, marked as such for whoever shows them."""
    why = f"{LOST}\n" if lost else ""
    print(f"{FAILED.format(rank=world.rank)}\n{why}{words}", file=sys.stderr)


def join(config: RunConfig, world: World) -> World:
    """The world after all ranks have met. A rank that hangs before that ends with all its stacks shown."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(config.timeouts.start + WATCHDOG_SECONDS, exit=True)
    from distrib.rendezvous import meet

    world = meet(world, timeout=config.timeouts.start, digest=digest(config), settings=flatten(config))
    faulthandler.cancel_dump_traceback_later()
    return world


def going_on(config: RunConfig) -> RunConfig:
    """The same run from its last checkpoint, where the launcher has started the job again."""
    resume = os.environ.get(RESUME)
    return replace(config, resume=resume) if resume else config


def work(config: RunConfig, *, run_dir: Path, world: World) -> None:
    """Trains on this rank. SIGTERM and SIGUSR1 from here on: finish the step, save, return."""
    stop_flag.install()
    set_threads(world)
    from distrib.run import run

    world = replace(
        world.on_device(),
        collective_timeout=config.timeouts.collective,
        check_collectives=config.diagnosis.check_steps != 0,
    )
    asked = stop_file(run_dir)
    run(config, run_dir=run_dir, world=world, stop_requested=lambda: stop_flag.set_by or asked())


def set_threads(world: World) -> None:
    """Gives torch ``OMP_NUM_THREADS`` threads; where nobody set it, an even share of the cores."""
    import torch

    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    torch.set_num_threads(int(given) if given.isdigit() else max(1, available_cores() // world.local_size))


def available_cores() -> int:
    """Cores this process may run on: fewer than the machine has under taskset, SLURM or Docker's cpusets."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def announce_failure(world: World) -> None:
    """Marks the traceback of an uncaught exception as this rank's last words."""

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(FAILED.format(rank=world.rank), file=sys.stderr)
        sys.__excepthook__(kind, error, where)

    sys.excepthook = hook


def end(code: int) -> NoReturn:
    """Ends this process, which has said all it has to say.

    After a failure at once: its launcher shows why when it has ended, and taking torch's groups down takes
    longer than finding the cause did (0.4 to 1.2 s on two busy cores).
    """
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # spares the interpreter's end half a second of looking for cycles in torch
    sys.exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
