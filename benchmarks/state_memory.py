"""What a rank holds while it saves or loads, beyond what it holds anyway, by strategy.

The model of `benchmarks.engines`, with AdamW's state. Saving is counted from just before it; loading down to
what is left after it, into a strategy that has not trained, as when a run is resumed. Counted is anonymous
memory, looked at every half millisecond: pages of a checkpoint that are mapped to be read belong to the
page cache.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Numbers, measure_cases
from distrib.parallel.allocator import give_back

NAMES = ("ddp", "fsdp", "horovod", "zero1", "zero2", "zero3")
WIDTH, SMALL = 512, 64
SECONDS = 0.0005


def main() -> None:
    measure_cases("state_memory", __doc__, cases=NAMES, processes=[2], repeats=1)


def worker(name: str, folder: Path) -> Numbers:
    """This rank's part; a small model first, which pays for what is imported and connected once."""
    import torch

    from benchmarks.engines import CASES, build_model, job, strategy_of, train, world_of_this_rank

    torch.set_num_threads(1)
    from distrib.state import StateReader, StateWriter

    case, world = CASES[name], world_of_this_rank()
    for width in (SMALL, WIDTH):
        recipes = job(size=world.size, precision=case.precision, width=width)
        state = folder / str(width)
        with strategy_of(case, world, job=recipes) as strategy:
            train(strategy, first=0, steps=1)
            writer = StateWriter(state, rank=world.rank, size=world.size)
            before, peak, _ = watched(lambda: strategy.save(writer))  # noqa: B023 (called at once)
            saving = peak - before
            strategy.reduce({"written": torch.ones(())})
        with strategy_of(case, world, job=recipes) as strategy:
            _, peak, after = watched(lambda: strategy.load(StateReader(state)))  # noqa: B023
            loading = peak - after
            strategy.reduce({"read": torch.ones(())})
    largest = max(parameter.nbytes for parameter in build_model(WIDTH).parameters())
    return {"saving": saving, "loading": loading, "largest_tensor": largest}


def watched(work: Callable[[], object]) -> tuple[int, int, int]:
    """Anonymous memory before ``work``, at its highest, and after; in bytes."""
    before = highest = anonymous()
    ended = threading.Event()

    def look() -> None:
        nonlocal highest
        while not ended.wait(SECONDS):
            highest = max(highest, anonymous_now())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    after = anonymous()
    return before, max(highest, after), after


def anonymous() -> int:
    """As `anonymous_now`, once what is free has been given back."""
    gc.collect()
    give_back()
    return anonymous_now()


def anonymous_now() -> int:
    """Resident memory of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2], Path(sys.argv[3]))), flush=True)
    else:
        main()
