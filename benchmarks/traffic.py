"""Bytes that the ranks send per optimizer step, in units of (N-1)/N of the model in fp32.

Counted by the kernel: the job runs in a network namespace of its own, whose loopback interface nobody
else uses. TCP's headers and acknowledgements are in it. ``stock-fsdp`` is torch's ``fully_shard`` as
its tutorial applies it, on gloo's own reduce-scatter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Numbers, measure_cases

WARMUP, STEPS = 2, 5
STOCK = {"stock-fsdp": True, "stock-fsdp-keep": False}
"""Torch's own, and whether it reshards after forward."""
INTERFACE = "lo"


def main() -> None:
    from benchmarks.engines import CASES

    measure_cases(
        "traffic",
        __doc__,
        cases=[*CASES, *STOCK],
        processes=[2, 4],
        repeats=2,
        settings={"steps": STEPS},
        begin=lambda: None if is_alone() else run_alone(),
    )


def is_alone() -> bool:
    """Whether this network namespace has only its loopback interface, which nothing has used yet."""
    return [*counters()] == [INTERFACE] and counters()[INTERFACE] == 0


def run_alone() -> None:
    """Begins this program anew in a network namespace of its own (root, or user namespaces, are needed)."""
    script = f'ip link set {INTERFACE} up && exec "$@"'
    program = [sys.executable, "-m", "benchmarks.traffic", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--map-root-user", "--net", "sh", "-c", script, "sh", *program])


def counters() -> dict[str, int]:
    """Bytes sent by each of this namespace's interfaces (proc_net_dev: the ninth number)."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return {name.strip(): int(rest.split()[8]) for name, _, rest in (line.partition(":") for line in lines)}


def worker(name: str) -> Numbers:
    """This rank's part; every rank reads the same counter, while all of them are quiet."""
    import torch

    torch.set_num_threads(1)
    if name in STOCK:
        return stock(reshard_after_forward=STOCK[name])
    from benchmarks.engines import CASES, job, strategy_of, train, world_of_this_rank

    case, world = CASES[name], world_of_this_rank()
    recipes = job(size=world.size, precision=case.precision, width=512)
    with strategy_of(case, world, job=recipes) as strategy:
        sent = count(
            lambda step: train(strategy, first=step, steps=1),
            quiet=lambda: strategy.reduce({"quiet": torch.ones(())}),
        )
    least = {} if case.traffic is None else {"least": float(case.traffic)}
    return {**in_units(sent, size=world.size), **least}


def stock(*, reshard_after_forward: bool) -> Numbers:
    """The plain loop around ``fully_shard``."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from benchmarks.engines import Stack, batch, build_model, loss

    dist.init_process_group("gloo")
    size = dist.get_world_size()
    model = build_model(512)
    assert isinstance(model, Stack)
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=reshard_after_forward)
    fully_shard(model, reshard_after_forward=reshard_after_forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(_: int) -> None:
        loss(model, batch(index=dist.get_rank(), size=size).tensors).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        sent = count(step, quiet=dist.barrier)
    finally:
        dist.destroy_process_group()
    return {**in_units(sent, size=size), "least": 3.0 if reshard_after_forward else 2.0}


def count(step: Callable[[int], object], *, quiet: Callable[[], object]) -> float:
    """Bytes that all ranks send in one step, the mean of `STEPS`.

    Every rank reads between two meetings: before the first some still send, after the second some already do.
    """
    read = []
    for first, steps in ((0, WARMUP), (WARMUP, STEPS)):
        for number in range(first, first + steps):
            step(number)
        quiet()
        read.append(counters()[INTERFACE])
        quiet()
    return (read[1] - read[0]) / STEPS


def in_units(sent: float, *, size: int) -> Numbers:
    from benchmarks.engines import build_model

    model_bytes = 4 * sum(parameter.numel() for parameter in build_model(512).parameters())
    # (N-1)/N of the model from each of N ranks.
    return {"bytes_per_step": sent, "units": sent / ((size - 1) * model_bytes)}


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2])), flush=True)
    else:
        main()
