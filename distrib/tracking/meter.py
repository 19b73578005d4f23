"""The latest numbers of a run and how fast it goes, at well under a microsecond per question asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

from distrib.core import OWN
from distrib.tracking.bars import part_of, spark
from distrib.tracking.text import bytes_text, clock_text, number_text, short_text

MEMORY = 0.95
"""Weight of the past in a rate: about the last twenty steps count."""
NUM_MEASURES = 3
"""Of the strategy's own numbers: as many as fit beside the others."""


class Meter:
    """Keeps the last step's record and moving rates of examples, tokens and steps per second."""

    def __init__(self, *, num_steps: int, first_step: int) -> None:
        self.num_steps = num_steps
        self.step = first_step
        self.last: Mapping[str, float] = {}
        self._measures: dict[str, float] = {}
        self._seconds = self._examples = self._tokens = self._steps = 0.0

    def update(self, record: Mapping[str, float]) -> None:
        self.last = record
        self.step = int(record["step"])
        self._measures |= {name: value for name, value in record.items() if name.startswith(OWN)}
        self._seconds = MEMORY * self._seconds + record["seconds"]
        self._examples = MEMORY * self._examples + record["examples"]
        self._tokens = MEMORY * self._tokens + record["tokens"]
        self._steps = MEMORY * self._steps + 1

    @property
    def examples_per_second(self) -> float:
        return self._examples / self._seconds if self._seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Without the time of evaluations and checkpoints to come; infinite before the first step."""
        per_step = self._seconds / self._steps if self._steps else math.inf
        return 0.0 if self.step >= self.num_steps else (self.num_steps - self.step) * per_step

    def fields(self) -> list[tuple[str, str]]:
        """Name and value of every number shown, in reading order; empty before the first step."""
        if not self.last:
            return []
        return [
            ("loss", number_text(self.last.get("loss"))),
            ("lr", number_text(self.last.get("lr"))),
            ("norm", number_text(self.last.get("grad_norm"))),
            ("examples/s", short_text(self.examples_per_second)),
            ("tokens/s", short_text(self.tokens_per_second)),
            ("memory", bytes_text(self.last.get("memory", 0.0))),
            *self._own(),
        ]

    def _own(self) -> Iterator[tuple[str, str]]:
        """The first few of the strategy's own measures, each with its parts where it has any."""
        whole = ((name, value) for name, value in self._measures.items() if part_of(name) is None)
        for name, value in islice(whole, NUM_MEASURES):
            parts = [amount for part, amount in self._measures.items() if part.startswith(f"{name}/")]
            shown = f"{number_text(value)} {spark(parts)}".rstrip()
            yield name.removeprefix(OWN).replace("_", " "), shown

    def line(self) -> str:
        """``step 40/150  loss 0.512  lr 4.2e-05  …``."""
        width = len(str(self.num_steps))
        shown = (f"{name} {value}" for name, value in self.fields())
        left = f"left {clock_text(self.seconds_left)}"
        return "  ".join([f"step {self.step:>{width}}/{self.num_steps}", *shown, left])
