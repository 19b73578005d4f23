"""What a step costs beyond the hand-written loop: ours, Accelerate, Lightning Fabric, transformers Trainer.

CPU and wall time per optimizer step of one rank (all its threads), and the peak resident memory of a
rank, for a tiny perceptron and for MiniLM, on one process and on two with DistributedDataParallel. On every
other engine ours is measured against the loop that one writes by hand around it, and against those of the
others that have it on CPUs: Accelerate 1.15 takes its FSDP and DeepSpeed settings there and trains with
DistributedDataParallel, Fabric 2.6 refuses DeepSpeed. All variants must end with the same weights, or nothing
is written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence

from benchmarks.common import Numbers, Variant, interleave, write

PEERS_WITH = {"ddp": ("fabric", "accelerate", "trainer"), "fsdp": ("fabric",)}
ENGINES = ("ddp", "fsdp", "horovod", "zero1", "zero2", "zero3")
STEPS = {"mlp": (1500, 100), "minilm": (8, 2)}
"""Measured steps and warm-up steps by model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(STEPS), default=sorted(STEPS, reverse=True))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    arguments = parser.parse_args()
    for model in arguments.models:
        for size in arguments.processes:
            for engine in arguments.engines if size > 1 else ["ddp"]:
                measure(model, size=size, engine=engine, repeats=arguments.repeats)


def measure(model: str, *, size: int, engine: str, repeats: int) -> None:
    """All variants of one model on ``size`` processes, into ``results/overhead-<model>-<size>….json``."""
    steps, warmup = STEPS[model]
    variants = [
        Variant(
            name=name,
            arguments=["-m", "benchmarks.worker", name, model, str(steps), str(warmup), engine],
            num_processes=size,
        )
        for name in ("plain", "ours", *PEERS_WITH.get(engine, ()))
    ]
    runs = interleave(variants, repeats=repeats)
    check_same_work(runs)
    settings = {
        "model": model,
        "num_processes": size,
        "engine": engine,
        "steps": steps,
        "warmup": warmup,
    }
    suffix = "" if engine == "ddp" else f"-{engine}"
    print(write(f"overhead-{model}-{size}{suffix}", runs, settings=settings))


def check_same_work(runs: Mapping[str, Sequence[Numbers]]) -> None:
    """Raises where a variant's weights are not those of the hand-written loop."""
    expected = runs["plain"][0]["checksum"]
    for name, rounds in runs.items():
        for numbers in rounds:
            if not math.isclose(numbers["checksum"], expected, rel_tol=1e-6):
                raise RuntimeError(f"{name} did other work: {numbers['checksum']} instead of {expected}")


if __name__ == "__main__":
    main()
