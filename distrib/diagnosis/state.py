"""What one rank knows of itself."""

from __future__ import annotations

import threading
import time

from distrib.diagnosis import collectives
from distrib.diagnosis.cards import Card, Met
from distrib.diagnosis.checked import is_checking
from distrib.diagnosis.collectives import Collective
from distrib.diagnosis.stacks import main_stack, stack_of

UNCHECKED = Collective(name="a collective operation that the others have not called")
"""What a rank waits in that torch has not recorded: one whose call is still being compared."""
WAITS_IN = ("torch/distributed/", "torch/autograd/graph.py")
"""Files a rank's innermost call is in while it waits: Python's own, and backward, which all-reduces."""


class RankState:
    """Updated by the thread that trains, read by the watchdog: plain assignments, which need no lock."""

    def __init__(self, rank: int, *, device: str) -> None:
        self.rank = rank
        self.device = device
        self.steps: int | None = None
        self.at = time.monotonic()
        self.answering = threading.Lock()
        """Held from looking at this object to telling the others: the later of two answers is the newer."""
        self.waits_in_vain = False
        self.met: Met | None = None
        """What is to be compared with the other ranks' next."""
        self._raised: tuple[list[str], Collective | None] | None = None

    @property
    def idle(self) -> float:
        """Seconds since the last optimizer step, or since the start."""
        return time.monotonic() - self.at

    def stepped(self, steps: int) -> None:
        """``steps`` optimizer steps are done in all."""
        self.steps, self.at = steps, time.monotonic()

    def meets(self, steps: int) -> None:
        """All ranks stand at the same place now: after ``steps`` steps and what followed them."""
        self.met = Met(steps=steps, calls=collectives.of_all_ranks())

    @property
    def stays(self) -> bool:
        """Whether it will not get any further: it has raised, or waits for what cannot come."""
        return self.has_raised or self.waits_in_vain

    @property
    def has_raised(self) -> bool:
        """Whether an error of the transport is being explained."""
        return self._raised is not None

    def raised(self, error: BaseException, called: Collective | None) -> None:
        """From now on this rank stands where ``error`` was raised, in the operation ``called``."""
        stack = stack_of(error.__traceback__)
        calls = collectives.recorded().calls
        if called is None and calls and not is_checking(self.device):
            called = calls[-1]
        self._raised = stack, called or _inferred(stack)

    def card(self) -> Card:
        """Where this rank stands now."""
        recorded = collectives.recorded()
        if self._raised is None:
            stack = main_stack()
            waits_in = recorded.waits_in or _inferred(stack)
        else:
            stack, waits_in = self._raised
        return Card.of_this_process(
            rank=self.rank,
            steps=self.steps,
            idle=self.idle,
            stack=tuple(stack),
            collective=waits_in,
            calls=recorded.calls,
        )


def _inferred(stack: list[str]) -> Collective | None:
    return UNCHECKED if stack and stack[-1].startswith(WAITS_IN) else None
