"""What is random in the user's model: found in its modules, and confirmed by its loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distrib.config import RunConfig
from distrib.run import assemble
from distrib.targets import build
from distrib.world import World

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from distrib.run import Rank

SHOWN = 3
"""Modules named of a kind; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """The random parts of a model in training."""

    parts: tuple[str, ...]
    """A line per kind of module and rate: how many there are and where."""
    felt: bool
    """Whether the loss of one microbatch depends on the seed: what a list of modules may miss."""

    def lines(self) -> Iterator[str]:
        """What the user is told before anything runs."""
        if not self.felt:
            yield from (f"{part} (no effect on the loss)" for part in self.parts)
            yield "nothing in the model: one microbatch has the same loss under two seeds"
        else:
            yield from self.parts or ["something that no module's attributes show"]
            yield "the loss of one microbatch depends on the seed, as it should with these"

    def pins(self) -> Iterator[str]:
        """How it is made the same everywhere."""
        yield "initial weights by seed; the order of the data by (seed, epoch)"
        if self.felt:
            yield "dropout and the like by (seed, step, microbatch), so wherever a microbatch runs; hence a"
            yield "reference of its own for every microbatch size"
        else:
            yield "no dropout: one reference for every microbatch size"


def find_randomness(config: RunConfig, *, run_dir: Path) -> Randomness:
    """Builds the model and its first microbatch in this process. Raises `ConfigError`, `DataError`."""
    strategy = build(config.strategy, key="strategy", plugins=config.plugins)
    rank = assemble(config, run_dir=run_dir, world=World(), strategy=strategy)
    model = rank.job.build_model()
    return Randomness(parts=tuple(random_parts(model)), felt=depends_on_seed(model, rank))


def random_parts(model: nn.Module) -> Iterator[str]:
    """Attributes of modules that are rates of dropping something out, grouped by class and rate."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            is_rate = "drop" in name or (name == "p" and "Drop" in type(module).__name__)
            if is_rate and isinstance(value, float) and 0.0 < value <= 1.0:
                found[f"{type(module).__name__}({name}={value:g})"].append(path or "the model")
    for kind, paths in found.items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        yield f"{len(paths)} x {kind}: {', '.join(paths[:SHOWN])}{more}"


def depends_on_seed(model: nn.Module, rank: Rank) -> bool:
    """Whether the first microbatch's loss, in training mode, differs between two seeds."""
    import torch

    from distrib.core import DataShard
    from distrib.data.loader import Loader
    from distrib.parallel.randomness import seed_microbatch

    loader = Loader(
        rank.prepared.train,
        task=rank.task,
        vocabulary=rank.prepared.vocabulary,
        train=rank.config.train,
        seed=rank.config.seed,
        shard=DataShard(index=0, count=1),
        device="cpu",
    )
    batch = next(iter(loader.steps(0, 1))).microbatches[0]
    loader.close()
    losses = []
    with torch.no_grad():
        for step in (0, 1):
            seed_microbatch(rank.config.seed, step=step, index=0, device=torch.device("cpu"))
            losses.append(rank.job.loss(model, batch.tensors).item())
    return losses[0] != losses[1]
