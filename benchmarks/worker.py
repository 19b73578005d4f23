"""One rank of one variant: ``python -m benchmarks.worker VARIANT MODEL STEPS WARMUP ENGINE FOLDER``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

VARIANTS = {
    "plain": "benchmarks.loops",
    "accelerate": "benchmarks.loops",
    "fabric": "benchmarks.loops",
    "trainer": "benchmarks.loops",
    "ours": "benchmarks.ours",
    "independent": "benchmarks.loops",
}
"""Functions of the same name, in modules that only their own variant imports."""


def main(variant: str, model: str, steps: str, warmup: str, engine: str, folder: str) -> None:
    import torch

    from benchmarks.problem import Problem

    torch.set_num_threads(1)
    problem = Problem(
        model=model,
        steps=int(steps),
        warmup=int(warmup),
        engine=engine,
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    numbers = getattr(importlib.import_module(VARIANTS[variant]), variant)(problem, Path(folder))
    print(json.dumps(numbers), flush=True)
    # gloo's threads may abort the interpreter's end (exit code -6, seen with plain loops): not measured.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
