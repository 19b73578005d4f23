"""A step's time where one of the ranks takes three times as long for a microbatch, balanced and not.

The machines are made uneven by a pause in every forward pass, long against the model's own arithmetic, so
that what else runs on this machine matters little. ``over_ideal`` is the step's time over what the added
speeds allow: microbatches / (sum of microbatches a second over the ranks), arithmetic and gradients' exchange
counted as if they took no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.common import Numbers, Variant, interleave, write

SERVERS = {"ddp": 0, "parameter_server": 1}
"""By strategy, the ranks that train nothing."""
PAUSE, SLOWER = 0.3, 3.0
"""Seconds for a microbatch, and how many times that on the last rank that trains. Four ranks on two cores
need another 0.02 s for its arithmetic: with 0.1 s that alone made a step 1.22 times the ideal."""
WARM_UP, STEPS = 10, 6
"""Speeds measured in the first 8 steps count from step 9 on at the latest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4], help="that train")
    # On 2 and on 4 processes so many can be shared out exactly; 24 on 4 would cost 1.11 by themselves.
    parser.add_argument("--microbatches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for size in given.processes:
        variants = [
            Variant(
                name=f"strategy={name} strategy.balance={balance}",
                arguments=["-m", "benchmarks.balance", "--worker", name, balance, str(given.microbatches)],
                num_processes=size + SERVERS[name],
            )
            for name in given.strategies
            for balance in ("none", "measured")
        ]
        runs = interleave(variants, repeats=given.repeats)
        settings = {
            "num_processes": size,
            "microbatches": given.microbatches,
            "pause": PAUSE,
            "slower": SLOWER,
        }
        print(write(f"balance-{size}", runs, settings=settings))


def worker(name: str, balance: str, count: int) -> Numbers:
    """This rank's part; no numbers of a rank that serves."""
    import torch
    from torch import Tensor, nn

    from benchmarks.engines import Case, batch, job, loss, strategy_of, world_of_this_rank

    torch.set_num_threads(1)
    world = world_of_this_rank()
    size = world.size - SERVERS[name]
    pauses = [PAUSE] * (size - 1) + [PAUSE * SLOWER]

    def slow_loss(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        time.sleep(pauses[world.rank])
        return loss(model, tensors)

    plain = job(size=size, precision="fp32", width=64)
    uneven = replace(plain, loss=slow_loss, num_microbatches=count)
    with strategy_of(Case(strategy=name, options={"balance": balance}), world, job=uneven) as strategy:

        def steps() -> Numbers:
            seconds, ran = [], 0
            for step in range(WARM_UP + STEPS):
                everything = [batch(index=index, size=count) for index in range(count)]
                began = time.perf_counter()
                mine = strategy.shard.take(everything, step=step)
                strategy.train_step(mine, step)
                seconds.append(time.perf_counter() - began)
                ran = len(mine)
            shares = strategy.reduce({"shares": torch.eye(size)[world.rank] * ran})["shares"]
            ideal = count / sum(1 / pause for pause in pauses)
            taken = statistics.median(seconds[WARM_UP:])
            return {
                "step_seconds": taken,
                "ideal_seconds": ideal,
                "over_ideal": taken / ideal,
                "slowest_ranks_share": shares[-1].item(),
            }

        return strategy.run(steps) or {}


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))), flush=True)
    else:
        main()
