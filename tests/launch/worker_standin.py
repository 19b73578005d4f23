"""The real worker with a stand-in for training: ``-m worker_standin BEHAVIOUR RUN_DIR``."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from distrib import worker
from distrib.config import RunConfig, TimeoutsConfig, dump
from distrib.errors import ConfigError
from distrib.rendezvous import process_group
from distrib.world import World


def groups(world: World) -> None:
    for _ in range(2):
        add_up(world)
    process_group(world)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce(world)


def refuses(world: World) -> None:
    raise ConfigError("strategy", "x", "use y")


def hangs(world: World) -> None: ...


def restarts(world: World) -> None:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        process_group(world)
        if world.rank == 1:
            raise ArithmeticError("in the first attempt only")
        all_reduce(world)
    print(add_up(world))


def add_up(world: World) -> str:
    import torch.distributed as dist

    process_group(world)
    text = f"sum {all_reduce(world)}"
    print(text, file=sys.stderr)
    dist.destroy_process_group()
    return text


def all_reduce(world: World) -> float:
    import torch
    import torch.distributed as dist

    value = torch.tensor(float(world.rank + 1))
    dist.all_reduce(value)
    return value.item()


def stand_in(behaviour: Callable[[World], None]) -> None:
    module = types.ModuleType("distrib.run")
    module.run = lambda config, *, run_dir, world, stop_requested: behaviour(world)  # type: ignore[attr-defined]
    sys.modules["distrib.run"] = module


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "hangs" and os.environ["RANK"] == "1":
        time.sleep(60)
    stand_in(globals()[name])
    start = 1.0 if name == "hangs" else 30.0
    dump(
        RunConfig(name="standin", timeouts=TimeoutsConfig(start=start, collective=20)), folder / "config.yaml"
    )
    sys.exit(worker.main([str(folder)]))
