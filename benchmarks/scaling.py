"""What a second process adds: two ranks against two processes that know nothing of each other.

Every process has one thread. ``independent`` are two at the same moment, each with half of the batch and
nobody to talk to: what this machine gives two processes that share its caches and memory, and so the most
that two ranks can reach. ``one`` is a single process with the whole batch. All train the same model; the
numbers are wall time per optimizer step.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.common import Numbers, Variant, interleave, write
from benchmarks.overhead import STEPS

NAMES = {"one": 1, "independent": 2, "plain": 2, "ours": 2}
"""Variants and their processes; ``plain`` is a hand-written loop with DistributedDataParallel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(STEPS), default=["minilm"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for model in arguments.models:
        measure(model, repeats=arguments.repeats)


def measure(model: str, *, repeats: int) -> None:
    """All variants of one model, into ``results/scaling-<model>.json``."""
    steps, warmup = STEPS[model]
    variants = [
        Variant(
            name=name,
            arguments=[
                *("-m", "benchmarks.worker", "plain" if name == "one" else name),
                *(model, str(steps), str(warmup), "ddp"),
            ],
            num_processes=size,
        )
        for name, size in NAMES.items()
    ]
    runs = interleave(variants, repeats=repeats)
    settings = {"model": model, "steps": steps, "warmup": warmup}
    print(write(f"scaling-{model}", with_efficiency(runs), settings=settings))


def with_efficiency(runs: Mapping[str, Sequence[Numbers]]) -> dict[str, list[Numbers]]:
    """Adds each round's share of what the two independent processes reached in the same round."""
    ideal = [numbers["wall_us"] for numbers in runs["independent"]]
    one = [numbers["wall_us"] for numbers in runs["one"]]
    return {
        name: [
            {
                **numbers,
                "efficiency": ideal[turn] / numbers["wall_us"],
                "speedup": one[turn] / numbers["wall_us"],
            }
            for turn, numbers in enumerate(rounds)
        ]
        for name, rounds in runs.items()
    }


if __name__ == "__main__":
    main()
