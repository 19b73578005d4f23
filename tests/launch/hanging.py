"""The real worker with ranks that do not go on together: ``-m hanging BEHAVIOUR RUN_DIR CHECK LIMIT``."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from distrib import worker
from distrib.config import DiagnosisConfig, RunConfig, TimeoutsConfig, dump
from distrib.core import Progress
from distrib.diagnosis.watchdog import watched
from distrib.rendezvous import process_group
from distrib.world import World


def shape(rank: int) -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(12 if rank == 1 else 10))
    add_up()


def dtype(rank: int) -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(10, dtype=torch.int32 if rank == 1 else torch.float32))


def order(rank: int) -> None:
    import torch
    import torch.distributed as dist

    tensor = torch.ones(10)
    if rank == 1:
        dist.broadcast(tensor, 0)
    else:
        dist.all_reduce(tensor)


def stopped(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    add_up()


def first_stopped(rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    add_up()


def stuck(rank: int) -> None:
    if rank == 1:
        wait_for_godot()
    add_up()


def all_stuck(rank: int) -> None:
    wait_for_godot(4.0)


def dies(rank: int) -> None:
    if rank == 1:
        raise ArithmeticError("the cause")
    add_up()


def wait_for_godot(seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def add_up() -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(10))


def train(world: World, progress: Progress, *, behaviour: Callable[[int], None], steps: int = 3) -> None:
    process_group(world)
    for step in range(steps):
        add_up()
        progress(step + 1)
    print("trained", file=sys.stderr)
    behaviour(world.rank)


def goes_on(world: World, progress: Progress, *, differs: bool) -> None:
    """After 0.5 s of steps one of another dtype by one rank, which nobody waits for; then 3 s more."""
    process_group(world)
    for step in range(1, 141):
        if differs and step == 20:
            dtype(world.rank)
        add_up()
        progress(step)
        time.sleep(0.025)
        if step % 10 == 0:
            add_up()
            progress.met(step)


GOES_ON = {"differs": True, "agrees": False}


def main(name: str, folder: Path, check: int | None, limit: float) -> int:
    def run(config: RunConfig, *, run_dir: Path, world: World, stop_requested: object) -> None:
        log = run_dir / "logs" / f"rank-{world.rank}.log"
        with watched(world, log=log, check_steps=config.diagnosis.check_steps) as progress:
            if name in GOES_ON:
                goes_on(world, progress, differs=GOES_ON[name])
                return
            train(world, progress, behaviour=globals()[name])

    module = types.ModuleType("distrib.run")
    module.run = run  # type: ignore[attr-defined]
    sys.modules["distrib.run"] = module
    config = RunConfig(
        name="hanging",
        timeouts=TimeoutsConfig(start=30.0, collective=limit),
        diagnosis=DiagnosisConfig(check_steps=check),
    )
    dump(config, folder / "config.yaml")
    return worker.main([str(folder)])


if __name__ == "__main__":
    name, folder, check, limit = sys.argv[1:]
    worker.end(main(name, Path(folder), None if check == "null" else int(check), float(limit)))
