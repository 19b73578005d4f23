"""How many trials fit on this machine, and which part of it each one gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from distrib.tracking.environment import hardware


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trials share."""

    cores: int
    gpus: tuple[str, ...] = ()
    """As ``CUDA_VISIBLE_DEVICES`` names them."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as this process may use it."""
        facts = hardware()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        installed = [str(number) for number, _ in enumerate(facts["gpus"])]  # type: ignore[arg-type]
        gpus = installed if visible is None else [name for name in visible.split(",") if name]
        return cls(cores=int(facts["cores"]), gpus=tuple(gpus))  # type: ignore[arg-type]


class Seats:
    """Places for trials that run at once.

    Each rank takes a GPU, or a core where there is none. A number given as ``parallel`` is kept to even
    where it is more than fit: then ranks share GPUs, those with the fewest ranks first.
    """

    def __init__(self, parallel: int | None, *, machine: Machine) -> None:
        self._parallel = parallel
        self._machine = machine
        self._taken: dict[int, tuple[str, ...]] = {}

    def fits(self, processes: int) -> bool:
        """Whether one more trial of so many processes may start; always where none runs."""
        if not self._taken or self._parallel is not None:
            return len(self._taken) < (self._parallel or 1)
        return sum(map(len, self._taken.values())) + processes <= len(self._places())

    def take(self, number: int, processes: int) -> Mapping[str, str]:
        """Seats trial ``number``; returns the variables that tell its processes so."""
        ranked = sorted(self._places(), key=self._ranks_at)
        chosen = tuple(ranked[k % len(ranked)] for k in range(processes))
        self._taken[number] = chosen
        if self._machine.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(chosen))}
        if "OMP_NUM_THREADS" in os.environ:
            return {}
        at_once = self._parallel or max(1, self._machine.cores // processes)
        return {"OMP_NUM_THREADS": str(max(1, self._machine.cores // (processes * at_once)))}

    def leave(self, number: int) -> None:
        """Trial ``number`` has ended."""
        del self._taken[number]

    def _places(self) -> tuple[str, ...]:
        return self._machine.gpus or tuple(map(str, range(self._machine.cores)))

    def _ranks_at(self, place: str) -> int:
        return sum(chosen.count(place) for chosen in self._taken.values())
