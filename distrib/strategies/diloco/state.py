"""A checkpoint of several replicas, made of what each one's own strategy hands over and takes back.

The inner strategy alone knows how its state is gathered and cut. So it is asked to save and load several
times, each time with other weights shown in the place of its own, by way of a writer or reader that gives
the names another place::

    model/                        the mean of the replicas
    optimizer/                    the mean of their optimizers' state
    strategy/diloco/velocity/…    the outer momentum
    strategy/diloco/outer/…       what was agreed on last    } where the replicas
    strategy/diloco/arriving/…    means under way            } differ
    strategy/diloco-replicas/…    each replica's own state, for as many replicas
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distrib.parallel.quantize import mean_over
from distrib.state import Entry, StateReader, StateWriter

NOTE = "diloco"
REPLICAS = "diloco-replicas"

Write = Callable[[Sequence[Entry]], None]


class Divided(StateWriter):
    """Gives each section to a function of its own; what has none is left out, and is not gathered."""

    def __init__(self, *, sections: Mapping[str, Write], note: Callable[..., None] | None = None) -> None:
        self._sections = sections
        self._note = note

    def write(self, section: str, entries: Sequence[Entry], *, file: str | None = None) -> None:
        if section in self._sections:
            self._sections[section](entries)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        if self._note is not None:
            self._note(name, value)


class Renamed(StateReader):
    """Reads each section where another one, and the beginning of a name, say; what is not listed is empty."""

    def __init__(self, reader: StateReader, places: Mapping[str, tuple[str, str]]) -> None:
        self.folder = reader.folder
        self._reader = reader
        self._places = places

    def names(self, section: str) -> set[str]:
        if section not in self._places:
            return set()
        place, start = self._places[section]
        return {n.removeprefix(start) for n in self._reader.names(place) if n.startswith(start)}

    def _place(self, section: str, name: str) -> tuple[str, str]:
        place, start = self._places[section]
        return place, start + name

    def shape(self, section: str, name: str) -> tuple[int, ...]:
        return self._reader.shape(*self._place(section, name))

    def read(self, section: str, name: str) -> Tensor:
        return self._reader.read(*self._place(section, name))

    def read_rows(self, section: str, name: str, rows: slice) -> Tensor:
        return self._reader.read_rows(*self._place(section, name), rows)

    def note(self, name: str) -> dict[str, Any] | None:
        return self._reader.note(name)


def averaged(writer: StateWriter, *, group: dist.ProcessGroup) -> StateWriter:
    """Writes the weights as they are shown, and the mean of the replicas' optimizer state."""

    def mean(entry: Entry) -> Tensor:
        tensor = entry.read().cpu()
        exact = tensor.reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32))
        return mean_over(group, exact, weight=1.0).to(tensor.dtype).view(tensor.shape)

    def write_means(entries: Sequence[Entry]) -> None:
        writer.write("optimizer", [replace(entry, read=partial(mean, entry)) for entry in entries])

    sections: dict[str, Write] = {"model": partial(writer.write, "model"), "optimizer": write_means}
    return Divided(sections=sections, note=writer.note)


def shown(writer: StateWriter, part: str) -> StateWriter:
    """Writes the weights that are shown as ``part`` of the strategy's own state."""

    def write(entries: Sequence[Entry]) -> None:
        renamed = [replace(entry, name=f"{NOTE}/{part}/{entry.name}") for entry in entries]
        writer.write("strategy", renamed, file=part)

    return Divided(sections={"model": write})


def of_part(reader: StateReader, part: str) -> StateReader:
    """Reads what `shown` wrote, as if it were the model's weights."""
    return Renamed(reader, {"model": ("strategy", f"{NOTE}/{part}/")})


def of_replicas(writer: StateWriter, *, group: dist.ProcessGroup, with_weights: bool) -> StateWriter:
    """Writes every replica's own state; its weights only where the replicas' differ."""

    def write(section: str, entries: Sequence[Entry]) -> None:
        each = [
            replace(
                entry,
                name=f"{REPLICAS}/{replica}/{section}/{entry.name}",
                read=partial(received, entry, group=group, source=replica),
            )
            for replica in range(group.size())
            for entry in entries
        ]
        writer.write("strategy", each, file=f"replicas-{section}")

    kept = ("model", "optimizer", "strategy") if with_weights else ("optimizer", "strategy")
    return Divided(sections={section: partial(write, section) for section in kept})


def of_replica(reader: StateReader, replica: int) -> StateReader:
    """Reads one replica's state; the weights from the model where they are the same for all."""
    start = f"{REPLICAS}/{replica}"
    own = ("strategy", f"{start}/model/")
    differ = any(name.startswith(own[1]) for name in reader.names("strategy"))
    return Renamed(
        reader,
        {
            "model": own if differ else ("model", ""),
            "optimizer": ("strategy", f"{start}/optimizer/"),
            "strategy": ("strategy", f"{start}/strategy/"),
        },
    )


def received(entry: Entry, *, group: dist.ProcessGroup, source: int) -> Tensor:
    """The tensor of replica ``source``, on every one."""
    tensor = entry.read().cpu().clone()
    options = dist.BroadcastOptions()
    options.rootRank = source
    group.broadcast([tensor], options).wait()
    return tensor


def targets_of_all(targets: Sequence[float], *, group: dist.ProcessGroup) -> list[list[float]]:
    """By replica what each has learnt from since its fragments left."""
    table = torch.zeros(group.size(), len(targets), dtype=torch.float64)
    table[group.rank()] = torch.tensor(targets, dtype=torch.float64)
    group.allreduce([table]).wait()
    return [list(row) for row in table.tolist()]
