"""A worker's pushes over a link whose server is lost in the middle of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distrib.strategies.parameter_server.layout import make_layout
from distrib.strategies.parameter_server.session import BODY, PUSH, Op
from distrib.strategies.parameter_server.spent import Spent
from distrib.strategies.parameter_server.uplink import Uplink


class Wire:
    """A session that writes down what it is given."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def tell(self, op: int, *numbers: float) -> None:
        self.said.append((op, *numbers))

    def send(self, tensor: Tensor, tag: int = BODY) -> None:
        self.said.append((tag, tensor.numel()))

    def confirmed(self) -> None:
        self.said.append(("confirmed",))


class LinkWithBackup:
    """Its session is replaced by the test, as `Link.exchange` does after a loss."""

    has_backup = True

    def __init__(self) -> None:
        self.session, self.is_new = Wire(), False
        self.catch_up: Callable[[Any], None] | None = None

    def attempt(self, talk: Callable[[Any], Any]) -> Any:
        return talk(self.session)

    def renew(self) -> None:
        self.session, self.is_new = Wire(), True


def uplink(link: LinkWithBackup) -> Uplink:
    layout = make_layout({"a": 4, "b": 4}, num_servers=1, bucket_numel=4)

    def settle() -> None:
        link.session.said.append(("settled",))

    return Uplink(layout, links=[link], spent=Spent(), settle=settle)  # type: ignore[list-item]


def test_a_push_is_announced_when_all_weights_have_come() -> None:
    """By that the server knows that they have, and may fill their memory anew; its receipt ends the push."""
    link = LinkWithBackup()
    up = uplink(link)
    up.begin(Op.STEP, step=3, bases=[2])
    assert link.session.said == []
    up.send(0, [torch.ones(4)])
    up.send(1, [torch.ones(4)])
    up.finish(0.0, 1.0, 1.0, 0.0, touched={"a", "b"})
    pushed = [(PUSH, 4), (PUSH + 2, 4), (BODY, 6 + 2)]
    assert link.session.said == [("settled",), (Op.STEP, 3, 2, 0), *pushed, ("confirmed",)]


def test_a_push_begun_with_a_lost_server_goes_whole_to_the_next() -> None:
    """What is left of it would come without its header: one of 20 kills ended in silence."""
    link = LinkWithBackup()
    up, numbers = uplink(link), (0.0, 1.0, 1.0, 0.0)
    up.begin(Op.STEP, step=3, bases=[2])
    up.send(0, [torch.ones(4)])
    link.renew()
    up.send(1, [torch.ones(4)])
    push = up.finish(*numbers, touched={"a", "b"})
    assert link.session.said == []
    up.repeat(push, 0, link.session)  # type: ignore[arg-type]
    header, *messages, trailer, receipt = link.session.said
    assert header == (Op.STEP, 3, 2, 0)
    assert sorted(messages) == [(PUSH, 4), (PUSH + 2, 4)]
    assert trailer == (BODY, 6 + 2)
    assert receipt == ("confirmed",)
    up.begin(Op.STEP, step=4, bases=[3])
    up.send(0, [torch.ones(4)])
    assert link.session.said[-2:] == [(Op.STEP, 4, 3, 0), (PUSH, 4)]


def test_what_was_answered_and_is_in_no_update_is_kept_as_it_went() -> None:
    """The gradient's memory is used again in the next step."""
    link = LinkWithBackup()
    up, gradient = uplink(link), torch.ones(4)
    up.begin(Op.STEP, step=0, bases=[0])
    up.send(0, [gradient])
    push = up.finish(0.0, 1.0, 1.0, 0.0, touched=set())
    up.keep(push, since=0)
    gradient.zero_()
    (kept,) = up._kept
    assert torch.equal(kept.messages[0][0], torch.ones(4))
    up.keep(push, since=1)
    assert up._kept == []


def test_each_server_is_told_its_own_version() -> None:
    """In the announcement, and in the push that is sent again to who takes over."""
    links = [LinkWithBackup(), LinkWithBackup()]
    layout = make_layout({"a": 4, "b": 4}, num_servers=2, bucket_numel=8)
    up = Uplink(layout, links=links, spent=Spent(), settle=lambda: None)  # type: ignore[arg-type]
    up.begin(Op.STEP, step=3, bases=[5, 2])
    up.send(0, [torch.ones(4), torch.ones(4)])
    push = up.finish(0.0, 1.0, 1.0, 0.0, touched=set())
    for server, link in enumerate(links):
        up.repeat(push, server, link.session)  # type: ignore[arg-type]
    told = [[said for said in link.session.said if said[0] == Op.STEP and len(said) == 4] for link in links]
    assert told == [[(Op.STEP, 3, 5, 0)] * 2, [(Op.STEP, 3, 2, 0)] * 2]
