"""What a step of ours costs beyond the hand-written loop on the same engine: both in one process, in turns.

Every rank has the engine started once and two models in it. It takes a turn of steps by hand, as many of
ours, and so on, so that a machine that slows down slows both, and both have the same process: differences of
1 % show, which are lost between processes, whose times differ by 5 % (`benchmarks.overhead`). What a library
adds to a process as such does not show. CPU time is that of all threads of the rank. Both must end with the
same weights, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.common import Numbers, Variant, interleave, write
from benchmarks.overhead import ENGINES

if TYPE_CHECKING:
    from benchmarks.engine_loops import Step
    from benchmarks.ours import Given
    from benchmarks.problem import Problem
    from distrib.run import Rank

T = TypeVar("T")

SIZES = {"mlp": (10, 150), "minilm": (1, 24)}
"""Steps of a turn, and pairs of turns that are measured, by model."""
WARMUP = 2
"""Pairs of turns before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(SIZES), default=sorted(SIZES, reverse=True))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parser.parse_args()
    for model in given.models:
        variants = [
            Variant(
                name=engine,
                arguments=["-m", "benchmarks.paired", "--worker", engine, model],
                num_processes=given.processes,
            )
            for engine in given.engines
        ]
        runs = interleave(variants, repeats=given.repeats)
        turn, pairs = SIZES[model]
        settings = {"model": model, "num_processes": given.processes, "turn": turn, "pairs": pairs}
        print(write(f"paired-{model}-{given.processes}", runs, settings=settings))


class Turns:
    """CPU seconds of alternate turns: one by hand, one of ours, whose loop asks for batches."""

    def __init__(self, by_hand: Iterator[None], *, length: int, count: int) -> None:
        self._by_hand = by_hand
        self._length, self._count = length, count
        self._ours: list[float] = []
        self._theirs: list[float] = []

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes batches on; before each turn of them goes one by hand."""
        began = 0.0
        for position, batch in enumerate(batches):
            if position % self._length == 0:
                asked = time.process_time()
                if position:
                    self._ours.append(asked - began)
                if len(self._theirs) < self._count:
                    self._turn_by_hand(since=asked)
                began = time.process_time()
            yield batch

    def _turn_by_hand(self, *, since: float) -> None:
        for _ in range(self._length):
            next(self._by_hand)
        self._theirs.append(time.process_time() - since)

    def numbers(self, *, skip: int) -> Numbers:
        """Microseconds a step: of each, and the median of what ours takes more than the turn before it."""
        ours, theirs = self._ours[skip:], self._theirs[skip:]
        unit = 1e6 / self._length
        return {
            "ours_us": statistics.median(ours) * unit,
            "plain_us": statistics.median(theirs) * unit,
            "added_us": statistics.median(map(operator.sub, ours, theirs)) * unit,
            "added_mean_us": statistics.fmean(map(operator.sub, ours, theirs)) * unit,
        }


def worker(engine: str, model: str, folder: Path) -> Numbers:
    """This rank's part."""
    import torch

    from benchmarks.ours import Given, set_up
    from benchmarks.problem import Problem

    torch.set_num_threads(1)
    length, pairs = SIZES[model]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    steps = length * (WARMUP + pairs)
    problem = Problem(model=model, steps=steps, warmup=0, engine=engine, rank=rank, size=size)
    given = Given(model)
    with set_up(problem, folder=folder, model=given) as ready:
        return take_turns(problem, ready, ours=given, length=length)


def take_turns(problem: Problem, ready: Rank, *, ours: Given, length: int) -> Numbers:
    """Both loops to their ends. The one by hand is gone on return, before the engine is stopped."""
    from benchmarks.engine_loops import LOOPS
    from benchmarks.loops import batches
    from benchmarks.ours import fit
    from benchmarks.problem import sum_of_weights

    def steps_by_hand(step: Step) -> Iterator[None]:
        for number, tensors in enumerate(batches(problem)):
            step(tensors, problem.lr(number))
            yield

    with LOOPS[problem.engine](problem) as (module, step):
        by_hand = steps_by_hand(step)
        turns = Turns(by_hand, length=length, count=problem.steps // length)
        fit(ready, watch=turns.watch)
        for _ in by_hand:  # the last step, which belongs to no turn
            pass
        sums = sum_of_weights(ours.module), sum_of_weights(module)
    if not math.isclose(*sums, rel_tol=1e-6):
        raise RuntimeError(f"ours did other work: weights of {sums[0]} instead of {sums[1]}")
    return turns.numbers(skip=WARMUP)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2], sys.argv[3], Path(sys.argv[4]))), flush=True)
        os._exit(0)  # as benchmarks.worker does
    else:
        main()
