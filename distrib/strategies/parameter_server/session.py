"""What a worker and a server say to each other: tensors over a process group of just the two.

A group per pair lets workers come and go: no group of all ranks has to be made anew. A message is a
header of numbers, then tensors whose sizes both sides know from the layout or from the header.
Nothing is ever unpickled. gloo closes a pair whose time limit has passed, so a peer that was taken for
dead and wakes up again can send nothing more.

gloo tells nobody of a peer that dies in the middle of a message: of all that is awaited from it, that one
message alone ends by its time limit only (measured: a sender of 800 MB killed after 0.05 s, noticed after
20 s of 20). So a mark follows every message that may come in pieces, and is awaited in its place.
Nor does gloo tell of the death whoever waits for a message to leave that has not left yet, however short it
is (of 390 servers killed 4 were noticed after the time limit). So nobody waits for that: who sends goes on,
keeps what it has sent, and lets go of it when the peer has answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum, auto
from typing import Any

import torch
from torch import Tensor

from distrib.errors import LaunchError, PeerLostError

NUM_NUMBERS = 8
BEAT = 0
"""A header that says no more than that who sent it lives, while it waits for others."""
HEADER, BODY, RECEIPT, PUSH, PULL = range(5)
"""Tags; buckets have tags of their own above `PUSH` and `PULL`."""

IN_ONE_PIECE = 512
"""Bytes that come whole or not at all: far below any network's packet, gloo's own header with them."""
MARK = 2**24
"""Added to a tag: of the byte that follows a longer message."""

BEATS = 4
"""In the time after which silence is taken for death."""

GLOO_WORDS = re.compile(r"\[/\S+\] |\. This is typically.*")
"""Where in gloo's sources an error was raised, and its advice."""


class Op(IntEnum):
    """What a worker asks of a server."""

    STEP = auto()
    """Gradients of a step follow; answered with the next weights."""
    FETCH = auto()
    """Answered with the weights as they are."""
    PLACE = auto()
    """Weights follow, which replace those held."""
    MEET = auto()
    """A vector follows; answered with the sum over all workers once all have come."""
    TALLY = auto()
    """A vector follows; answered at once with the sum of what every worker sent last."""
    JOIN = auto()
    """A worker comes into a running job; answered with the step it begins at."""
    SLOTS = auto()
    """Answered with the names of the optimizer's slots."""
    GET = auto()
    """Answered with one slot of one piece."""
    PUT = auto()
    """One slot of one piece follows."""
    FACTS = auto()
    """Answered with what the server has measured."""
    LEAVE = auto()
    """The worker is done; answered when all who must know do."""
    AGAIN = auto()
    """Gradients of a step that was answered already follow, for a server that took over; not answered."""
    SETTLE = auto()
    """Another server's: the workers whose pushes it has follow; answered with those that all servers have."""


class Note(IntEnum):
    """What a server tells its backup."""

    STATE = auto()
    """What it knows of its workers, as JSON; answered."""
    TOTAL = auto()
    """A meeting's total follows, and later the `STATE` that knows of it."""
    UPDATE = auto()
    """What an update is made of and then its `STATE` follow."""
    WHOLE = auto()
    """The weights, the optimizer's slots, and then the `STATE` follow."""
    END = auto()
    """It has ended, for the reason that comes as text; null: all workers have left."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A received header."""

    op: int
    numbers: Sequence[float]
    text: Any = None
    """JSON that came with it."""


class Pending:
    """A message under way from or to the peer.

    Args:
        works: to be waited for in this order.
    """

    def __init__(self, works: Sequence[Any], session: Session) -> None:
        self._works, self._session = works, session

    def wait(self) -> None:
        """Returns when the message is through. Raises as `Session` says."""
        try:
            for work in self._works:
                work.wait(self._session.limit)
        except RuntimeError as error:
            raise self._session.failed(error) from error


class Session:
    """One side of a pair.

    Args:
        group: of two ranks, of which this is ``rank``.
        peer: the other, in words.
        limit: seconds that one message may take or be waited for.

    Every method raises `PeerLostError` where the peer is gone and `LaunchError` where it is silent.
    """

    def __init__(self, group: Any, *, rank: int, peer: str, limit: float) -> None:
        self._group, self._other, self.peer = group, 1 - rank, peer
        self.limit = timedelta(seconds=limit)
        self.sent = self.received = 0
        self._leaving: list[Pending] = []

    def send(self, tensor: Tensor, tag: int = BODY) -> None:
        """Begins to send a contiguous tensor, which must not change before the peer has answered."""
        self.sent += tensor.nbytes
        self._leaving.append(self._begin(self._group.send, tensor, tag))

    def settle(self) -> None:
        """Lets go of what was sent. To be called when the peer has shown that all of it has come."""
        for message in self._leaving:
            message.wait()
        self._leaving = []

    def start_receive(self, tensor: Tensor, tag: int = BODY) -> Pending:
        """Begins to fill a contiguous tensor."""
        self.received += tensor.nbytes
        return self._begin(self._group.recv, tensor, tag)

    def _begin(self, how: Any, tensor: Tensor, tag: int) -> Pending:
        try:
            works = [how([tensor], self._other, tag)]
            if tensor.nbytes > IN_ONE_PIECE:  # first the mark, which is there when all before it is
                works.insert(0, how([torch.zeros(1, dtype=torch.uint8)], self._other, tag + MARK))
        except RuntimeError as error:
            raise self.failed(error) from error
        return Pending(works, self)

    def receive(self, tensor: Tensor, tag: int = BODY) -> Tensor:
        """Fills a tensor and returns it."""
        self.start_receive(tensor, tag).wait()
        return tensor

    def tell(self, op: int, *numbers: float, text: Any = None) -> None:
        """Sends a header: at most six numbers, and JSON for what is not asked for in every step."""
        body = b"" if text is None else json.dumps(text).encode()
        header = torch.zeros(NUM_NUMBERS, dtype=torch.float64)
        values = [float(op), float(len(body)), *map(float, numbers)]
        header[: len(values)] = torch.tensor(values, dtype=torch.float64)
        self.send(header, HEADER)
        if body:
            self.send(torch.frombuffer(bytearray(body), dtype=torch.uint8))

    def hear(self) -> Message:
        """The next header, by which the peer shows that it has all that was sent to it before.

        Of what it is sent a peer answers everything, or asks for the next when it has come. While it waits
        for others it says that it lives, so that the time limit is of its silence alone.
        """
        while (header := self._next_header())[0] == BEAT:
            pass
        op, length, *numbers = header
        text = None
        if length:
            text = json.loads(bytes(self.receive(torch.zeros(int(length), dtype=torch.uint8)).tolist()))
        self.settle()
        return Message(op=int(op), numbers=numbers, text=text)

    def _next_header(self) -> list[float]:
        header: list[float] = self.receive(torch.zeros(NUM_NUMBERS, dtype=torch.float64), HEADER).tolist()
        return header

    def beat(self) -> None:
        """Tells the peer that this side lives, while it waits for others; as often as `beat_seconds` says."""
        self.tell(BEAT)

    @property
    def beat_seconds(self) -> float:
        """Well within the time after which silence is taken for death."""
        return self.limit.total_seconds() / BEATS

    def ask(self, op: int, *numbers: float, text: Any = None) -> Message:
        """A header and the answer to it."""
        self.tell(op, *numbers, text=text)
        return self.hear()

    def confirm(self) -> None:
        """Tells the peer that what it has sent has come."""
        self.send(torch.zeros(1, dtype=torch.uint8), RECEIPT)

    def confirmed(self) -> None:
        """Waits for the peer to `confirm` what it was sent."""
        self.receive(torch.zeros(1, dtype=torch.uint8), RECEIPT)
        self.settle()

    def failed(self, error: RuntimeError) -> LaunchError:
        """What a transport's error means."""
        text = str(error)
        if "timed out" in text.lower() or "timeout" in text.lower():
            seconds = self.limit.total_seconds()
            return LaunchError(
                f"{self.peer} has been silent for {seconds:g} s: stopped, cut off, or slower than the time "
                "limit (strategy.silent_after, else timeouts.collective)"
            )
        return PeerLostError(f"lost {self.peer}: {GLOO_WORDS.sub('', text.splitlines()[0])}")


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor of any type, to be sent."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
