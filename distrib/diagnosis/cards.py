"""What the ranks tell each other about themselves, through the store they met at."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distrib.diagnosis.collectives import Collective

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from distrib.world import World

POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one rank was doing when somebody asked."""

    rank: int
    host: str
    pid: int
    steps: int | None
    """Optimizer steps done; None before the first."""
    idle: float
    """Seconds since the last of them."""
    stack: tuple[str, ...]
    """The main thread's calls, the innermost last."""
    collective: Collective | None = None
    """The operation it waits in, or was refused."""
    calls: tuple[Collective, ...] = ()
    """Its last operations, oldest first."""

    @classmethod
    def of_this_process(cls, *, rank: int, **state: Any) -> Card:
        """A card with this process's host and number."""
        return cls(rank=rank, host=socket.gethostname(), pid=os.getpid(), **state)


@dataclass(frozen=True, kw_only=True)
class Met:
    """What one rank had called last at a place that all ranks come to."""

    steps: int
    """Optimizer steps done by then."""
    calls: tuple[Collective, ...]


class Board:
    """Where cards hang: the store under a name of its own, for one thread.

    Args:
        store: given up to this object: its lock would make a thread wait for another's request.
    """

    def __init__(self, store: Store, *, rank: int, size: int) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self._store = PrefixStore("diagnosis", store)
        self.rank, self.size = rank, size

    @classmethod
    def of(cls, world: World) -> Board:
        """A board with a connection of its own to the store of ``world``."""
        return cls(world.store.clone(), rank=world.rank, size=world.size)

    def ask(self) -> int:
        """Asks every rank for a card; returns the question's number."""
        return self._store.add("asked", 1)

    def asked(self) -> int:
        """The number of the last question of any rank; 0: none."""
        return self._store.add("asked", 0)

    def answer(self, card: Card, *, question: int) -> None:
        """Hangs up this rank's card as the answer to every question up to ``question``."""
        self._store.set(f"card/{card.rank}", json.dumps({"question": question, "card": asdict(card)}))

    def answers(
        self, question: int, *, seconds: float, enough: Callable[[Mapping[int, Card]], bool]
    ) -> dict[int, Card]:
        """The cards by rank that are there after ``seconds``, or earlier when all came and are ``enough``."""
        deadline = time.monotonic() + seconds
        cards: dict[int, Card] = {}
        while time.monotonic() < deadline:
            for rank in range(self.size):
                if (card := self._card(rank, question)) is not None:
                    cards[rank] = card
            if len(cards) == self.size and enough(cards):
                break
            time.sleep(POLL_SECONDS)
        return cards

    def compare(self, calls: Sequence[Collective]) -> dict[int, Sequence[Collective]]:
        """Says what this rank, which waits, has called; returns it and the next rank's, if that waits.

        Where groups of ranks differ, some neighbours differ, so that each need look at one only.
        """
        self._store.set(f"calls/{self.rank}", json.dumps([asdict(call) for call in calls]))
        neighbour = (self.rank + 1) % self.size
        if not self._store.check([f"calls/{neighbour}"]):
            return {self.rank: calls}
        theirs = json.loads(self._store.get(f"calls/{neighbour}"))
        return {self.rank: calls, neighbour: [Collective.from_json(call) for call in theirs]}

    def meet(self, met: Met) -> None:
        """Says what this rank had called when all ranks met."""
        self._store.set(f"met/{self.rank}", json.dumps(asdict(met)))

    def met(self, rank: int) -> Met | None:
        """What a rank said last of the places where all ranks met."""
        if not self._store.check([f"met/{rank}"]):
            return None
        found = json.loads(self._store.get(f"met/{rank}"))
        return Met(steps=found["steps"], calls=tuple(map(Collective.from_json, found["calls"])))

    def _card(self, rank: int, question: int) -> Card | None:
        key = f"card/{rank}"
        if not self._store.check([key]):
            return None
        found = json.loads(self._store.get(key))
        if found["question"] < question:
            return None
        values = found["card"]
        collective = values["collective"]
        return Card(
            **{
                **values,
                "stack": tuple(values["stack"]),
                "collective": collective and Collective.from_json(collective),
                "calls": tuple(map(Collective.from_json, values["calls"])),
            }
        )
