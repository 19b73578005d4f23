"""What it costs to be able to say why a job hangs: per collective operation, two processes.

``bare``: torch's process group alone. ``watched``: with what every job has: operations recorded, the
watchdog's thread, the steps counted. ``checked``: what ``diagnosis.check_steps`` adds in its first steps.
An operation is an all-reduce of 1,000 numbers, so that nearly all of it is what an operation costs at least.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Numbers, Variant, interleave, write

NAMES = ("bare", "watched", "checked")
OPERATIONS, WARMUP = 2000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    variants = [
        Variant(
            name=name,
            arguments=["-m", "benchmarks.checking", "--worker", name],
            num_processes=arguments.processes,
        )
        for name in NAMES
    ]
    runs = interleave(variants, repeats=arguments.repeats)
    settings = {"num_processes": arguments.processes, "operations": OPERATIONS}
    print(write(f"checking-{arguments.processes}", runs, settings=settings))


def worker(name: str) -> Numbers:
    """This rank's part."""
    if name == "bare":
        os.environ["TORCH_FR_BUFFER_SIZE"] = "0"
    import torch
    import torch.distributed as dist

    from distrib.rendezvous import meet, process_group
    from distrib.world import World

    torch.set_num_threads(1)
    world = replace(meet(World.from_env(), timeout=60, digest=name), check_collectives=name == "checked")
    value = torch.ones(1000)
    with progress_of(world, watched=name != "bare") as progress:
        process_group(world)
        for _ in range(WARMUP):
            dist.all_reduce(value)
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(OPERATIONS):
            dist.all_reduce(value)
            progress(step)
        numbers = {
            "wall_us": (time.perf_counter() - wall) / OPERATIONS * 1e6,
            "cpu_us": (time.process_time() - cpu) / OPERATIONS * 1e6,
        }
        start = time.perf_counter()
        for step in range(OPERATIONS):
            progress(step)
        numbers["step_us"] = (time.perf_counter() - start) / OPERATIONS * 1e6
        dist.destroy_process_group()
        return numbers


@contextmanager
def progress_of(world: object, *, watched: bool) -> Iterator[Callable[[int], None]]:
    from distrib.diagnosis.watchdog import watched as watch
    from distrib.world import World

    assert isinstance(world, World)
    if not watched:
        yield lambda steps: None
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        watch(world, log=Path(folder) / "log", check_steps=None) as progress,
    ):
        yield progress


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2])), flush=True)
    else:
        main()
