"""How far resident memory rises while a checkpoint of MiniLM and its AdamW state is written.

``ours`` writes a whole checkpoint (weights, optimizer, digests, manifest); the others write the same
tensors the usual ways. The largest tensor, the word embedding, is 46.9 MB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Numbers, Variant, interleave, write
from distrib.parallel.allocator import give_back

NAMES = ("ours", "torch-save", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    variants = [
        Variant(name=name, arguments=["-m", "benchmarks.checkpoint_memory", "--worker", name])
        for name in NAMES
    ]
    runs = interleave(variants, repeats=arguments.repeats)
    print(write("checkpoint-memory", runs, settings={"model": "minilm"}))


def worker(name: str, folder: Path) -> Numbers:
    """Trains one step, so that the optimizer has its state, and saves."""
    import distrib.run
    from benchmarks.ours import Given, assemble
    from benchmarks.problem import Problem
    from distrib.data.loader import Loader

    rank = assemble(Problem(model="minilm", steps=1, warmup=0), folder=folder, model=Given("minilm"))
    rank.strategy.setup(rank.job, rank.world)
    try:
        loader = Loader(
            rank.prepared.train,
            task=rank.task,
            vocabulary=rank.prepared.vocabulary,
            train=rank.config.train,
            seed=rank.config.seed,
            shard=rank.strategy.shard,
            device="cpu",
        )
        for step in loader.steps(0, 1):
            rank.strategy.train_step(step.microbatches, 0)
        replica = rank.strategy._replica  # type: ignore[attr-defined]
        savers: dict[str, Callable[[], object]] = {
            "ours": lambda: distrib.run.checkpointer(rank).save(rank.strategy, 1, report=None, best=False),
            "torch-save": lambda: torch_save(replica.module, replica.optimizer, folder),
            "safetensors": lambda: safetensors_save(replica.module, replica.optimizer, folder),
        }
        largest = max(parameter.nbytes for parameter in replica.module.parameters())
        added = rise(savers[name])
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return {**added, "largest_tensor_bytes": largest, "written_bytes": written}
    finally:
        rank.strategy.close()


def rise(save: Callable[[], object]) -> Numbers:
    """Peak resident memory during ``save`` less that just before.

    Memory that the step freed is given back first, or saving could hide in it; then Linux is asked
    to forget the old peak.
    """
    gc.collect()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    save()
    return {"added_bytes": resident("VmHWM") - before}


def resident(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def torch_save(model: object, optimizer: object, folder: Path) -> None:
    """One pickle of both state dicts."""
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}  # type: ignore[attr-defined]
    torch.save(state, folder / "checkpoint.pt")


def safetensors_save(model: object, optimizer: object, folder: Path) -> None:
    """The same tensors through the safetensors library."""
    from safetensors.torch import save_file

    save_file(dict(model.state_dict()), folder / "model.safetensors")  # type: ignore[attr-defined]
    slots = optimizer.state_dict()["state"]  # type: ignore[attr-defined]
    flat = {f"{index}.{slot}": tensor for index, state in slots.items() for slot, tensor in state.items()}
    save_file(flat, folder / "optimizer.safetensors")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        print(json.dumps(worker(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
