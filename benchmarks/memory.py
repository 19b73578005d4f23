"""Bytes per parameter that a rank holds after backward, and its peak while the strategy is set up.

Live tensors, counted by storage between the second backward and its update: weights, gradients, and optimizer
state, which exists after the first. Activations are freed by then. ``formula`` is what theory says.
The peak of setting up is of resident memory, over what the process had before. `benchmarks.building_memory`
has a larger model.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.common import Numbers, measure_cases

if TYPE_CHECKING:
    from distrib.core import Job
    from distrib.strategies.base import Strategy

WIDTH = 512


def main() -> None:
    from benchmarks.engines import CASES

    default = [name for name, case in CASES.items() if case.memory]
    measure_cases("memory", __doc__, cases=list(CASES), default=default, processes=[2, 4], repeats=1)


def worker(name: str) -> Numbers:
    """This rank's part."""
    import torch

    torch.set_num_threads(1)
    from benchmarks.checkpoint_memory import rise
    from benchmarks.engines import CASES, build_model, job, strategy_of, train, world_of_this_rank

    case, world = CASES[name], world_of_this_rank()
    small = job(size=world.size, precision=case.precision, width=64)
    with strategy_of(case, world, job=small) as strategy:  # pays for imports and connections
        train(strategy, first=0, steps=1)
    live: list[int] = []
    recipes = watched(job(size=world.size, precision=case.precision, width=WIDTH), live)
    with ExitStack() as stack:
        opened: list[Strategy] = []
        peak = rise(lambda: opened.append(stack.enter_context(strategy_of(case, world, job=recipes))))
        train(opened[0], first=0, steps=2)
    parameters = sum(parameter.numel() for parameter in build_model(WIDTH).parameters())
    formula = case.live_bytes(world.size)
    return {
        "live": live[-1] / parameters,
        "setup_peak": peak["added_bytes"] / parameters,
        **({} if formula is None else {"formula": formula}),
    }


def watched(recipes: Job, live: list[int]) -> Job:
    """The same recipes, with a learning rate that notes the live bytes: it is asked for after backward."""

    def lr(step: int) -> float:
        live.append(live_bytes())
        return recipes.lr(step)

    return dataclasses.replace(recipes, lr=lr)


def live_bytes() -> int:
    """The size of all storages that tensors in this process refer to, each once."""
    import torch

    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2])), flush=True)
    else:
        main()
