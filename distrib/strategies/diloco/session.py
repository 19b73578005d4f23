"""One rank of one replica: its inner strategy, and what joins it to the other replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from distrib.core import IGNORED, Batch, DataShard, Job, StepResult
from distrib.errors import ConfigError
from distrib.parallel.quantize import Quantize
from distrib.parallel.reduce import flatten, unflatten
from distrib.rendezvous import side_group
from distrib.state import StateReader, StateWriter
from distrib.strategies.base import Strategy
from distrib.strategies.diloco.exchange import Exchange
from distrib.strategies.diloco.outer import Outer
from distrib.strategies.diloco.rounds import Rounds
from distrib.strategies.diloco.state import (
    NOTE,
    averaged,
    of_part,
    of_replica,
    of_replicas,
    shown,
    targets_of_all,
)
from distrib.world import World


class Session:
    """What `DiLoCo` does once it runs. Ranks of one place in their replicas exchange what they hold.

    Attributes:
        outer: what the replicas agree on.
    """

    outer: Outer
    _exchange: Exchange | None = None

    def __init__(self, world: World, *, inner: Strategy, replica_size: int, rounds: Rounds) -> None:
        self.inner = inner
        self.rounds = rounds
        self.world = world
        self.replica, self.place = divmod(world.rank, replica_size)
        self.replica_size = replica_size
        self.num_replicas = world.size // replica_size

    def begin(self, job: Job, *, quantize: Quantize, lr: float, momentum: float, keep_local: float) -> None:
        """Sets the inner strategy up over this replica's ranks, and joins the replicas."""
        # Before the inner strategy's own group, whose ranks may share a host and take its loopback interface.
        self.group, apart = (
            side_group(self.world, f"{name}-{self.place}", rank=self.replica, size=self.num_replicas)
            for name in ("replicas", "exchange")
        )
        num_microbatches = -(-job.num_microbatches // self.num_replicas)
        self.inner.setup(replace(job, num_microbatches=num_microbatches), self._inner_world())
        if self.inner.shard.owners is not None:
            remedy = "is not to be had within replicas, which take microbatches in turn; use none"
            raise ConfigError("strategy.inner.balance", "measured", remedy)
        self._exchange = Exchange(apart, quantize=quantize)
        self.outer = Outer(
            self.inner.weights,
            rounds=self.rounds,
            group=self.group,
            exchange=self._exchange,
            lr=lr,
            momentum=momentum,
            keep_local=keep_local,
        )

    def _inner_world(self) -> World:
        store = PrefixStore(f"replica-{self.replica}", self.world.store) if self.replica_size > 1 else None
        return replace(
            self.world,
            rank=self.place,
            size=self.replica_size,
            local_size=min(self.world.local_size, self.replica_size),
            store=store,
            check_collectives=False,  # which is for groups of all ranks: theirs differ by replica
        )

    @property
    def shard(self) -> DataShard:
        """Microbatches go round the replicas, and within one round its inner shards."""
        inner = self.inner.shard
        return DataShard(
            index=self.replica + self.num_replicas * inner.index, count=self.num_replicas * inner.count
        )

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """The replica's own step, divided by its own targets, and the exchanges that are due after it."""
        self.outer.hide()
        here = torch.stack([(batch.tensors["labels"] != IGNORED).sum() for batch in microbatches]).sum()
        targets = int(self.inner.reduce({"targets": here})["targets"].item())
        own = [replace(batch, step_targets=max(targets, 1)) for batch in microbatches]
        result = self.inner.train_step(own, step)
        self.outer.step_done(step + 1, targets=targets if result.updated else 0)
        return result

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """On the mean of the replicas, which is there from the first call after a step to the next step."""
        self.outer.show_mean()
        return self.inner.eval_step(batch)

    def reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds up within the replica, then over replicas."""
        within = self.inner.reduce(sums)
        vector = flatten(within)
        self.group.allreduce([vector]).wait()
        return unflatten(vector, within)

    def save(self, writer: StateWriter) -> None:
        """Hands over the mean of the replicas, the outer momentum, and what differs between replicas."""
        outer, fragments = self.outer, self.outer.fragments
        outer.show_mean()
        self.inner.save(averaged(writer, group=self.group))
        parts = {"velocity": [f.velocity for f in fragments]}
        if not outer.settled:
            parts["outer"] = [f.outer for f in fragments]
        if any(f.arriving for f in fragments):
            parts["arriving"] = [
                f.arriving.result() if f.arriving else torch.zeros_like(f.outer) for f in fragments
            ]
        for name, flats in parts.items():
            outer.show(flats)
            self.inner.save(shown(writer, name))
        outer.hide()
        self.inner.save(of_replicas(writer, group=self.group, with_weights=not outer.settled))
        targets = targets_of_all([f.targets for f in fragments], group=self.group)
        note = {"done": outer.done, "settled": outer.settled, "targets": targets}
        writer.note(NOTE, {**note, **self._terms()})

    def _terms(self) -> dict[str, int]:
        """What a run must share with another to go on in the middle of its rounds."""
        return {"num_replicas": self.num_replicas, **asdict(self.rounds)}

    def load(self, reader: StateReader) -> None:
        """Goes on as if unbroken on the same terms, else from the mean with the outer momentum."""
        self.outer.own = None
        saved = reader.note(NOTE)
        flats: dict[str, list[Tensor]] = {}
        for part in ("velocity", "outer", "arriving"):
            source = of_part(reader, part)
            if saved is not None and source.names("model"):
                self.inner.load(source)
                weights = self.inner.weights()
                flats[part] = [fragment.gather(weights) for fragment in self.outer.fragments]
        same = saved is not None and {name: saved.get(name) for name in self._terms()} == self._terms()
        self.inner.load(of_replica(reader, self.replica) if same else reader)
        self.outer.restart()
        for fragment, velocity in zip(self.outer.fragments, flats.get("velocity", []), strict=False):
            fragment.velocity = velocity
        if saved is not None and same:
            self._go_on(saved, flats)

    def _go_on(self, saved: Mapping[str, Any], flats: Mapping[str, Sequence[Tensor]]) -> None:
        """Takes up a round in its middle."""
        outer = self.outer
        outer.done, outer.settled = int(saved["done"]), bool(saved["settled"])
        for number, fragment in enumerate(outer.fragments):
            fragment.targets = float(saved["targets"][self.replica][number])
            if "outer" in flats:
                fragment.outer = flats["outer"][number]
            if "arriving" in flats and number in self.rounds.under_way(outer.done):
                fragment.arriving = Future()
                fragment.arriving.set_result(flats["arriving"][number])

    def close(self) -> None:
        """Ends the thread and the groups."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self.__dict__.pop("outer", None)
        self.__dict__.pop("group", None)
