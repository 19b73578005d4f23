"""What a backup makes of what its server has told it, in each mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pushes import push
from torch import Tensor

from distrib.strategies.parameter_server.agreement import Leading
from distrib.strategies.parameter_server.hall import Hall
from distrib.strategies.parameter_server.layout import in_forward_order, make_layout
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Averaged, Bounded, Elastic, Push, Rules, Unbounded
from distrib.strategies.parameter_server.updates import Alone, Centre, Mean, Summed, Update
from distrib.testing.proof import Proof, job_for

Maker = Callable[[Part, Hall, Any], Update]


class Wire:
    """Stands for a ledger: has another update repeat whatever it is told, when the first is made."""

    keep = Mock()

    def __init__(self, other: Update) -> None:
        self._other = other

    @contextmanager
    def update(
        self, vector: Tensor, *, touched: Collection[str] | None = None, norm: float = 0.0, lr: float = 0.0
    ) -> Iterator[None]:
        told = vector.clone()  # clipping scales the other in place
        yield
        names = self._other._part.pieces.keys() if touched is None else touched
        self._other.repeat(told, touched=names, norm=norm, lr=lr)


def summed(part: Part, hall: Hall, ledger: Any) -> Update:
    return Summed(part, hall, ledger, agreement=Leading(hall, ledger, Mock(), others={}), shares=None)


def alone(part: Part, hall: Hall, ledger: Any) -> Update:
    return Alone(part, hall, ledger, damping=True)


def mean(part: Part, hall: Hall, ledger: Any) -> Update:
    return Mean(part, hall, ledger, agreement=Leading(hall, ledger, Mock(), others={}))


def fresh_part() -> Part:
    job = job_for(Proof(strategy={}))
    parameters, _ = in_forward_order(job.build_model())
    layout = make_layout({n: p.numel() for n, p in parameters.items()}, num_servers=1, bucket_numel=500)
    return Part(job, layout, server=0, weights={name: p.data for name, p in parameters.items()})


def pushed(part: Part, *, step: int) -> list[Push]:
    """Of two workers, who have learnt from different numbers of targets; one parameter has no gradient."""
    touched = frozenset(list(part.pieces)[1:])
    return [
        dataclasses.replace(
            push(rank, step),
            vector=torch.randn_like(part.vector),
            targets=1.0 + rank,
            step_targets=3.0,
            norm=1.0,
            touched=touched,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    ("maker", "rules"),
    [
        (summed, Bounded(staleness=0)),
        (alone, Unbounded()),
        (mean, Averaged(stride=1)),
        (Centre, Elastic(stride=1)),
    ],
    ids=["sync", "async", "average", "elastic"],
)
def test_a_backup_is_the_same_to_the_bit(maker: Maker, rules: Rules) -> None:
    """After two steps of two workers, weights and optimizer state."""
    torch.manual_seed(1)
    halls = [Hall(rules, num_workers=2, may_lose=lambda rank: True, min_workers=1) for _ in range(2)]
    parts = [fresh_part(), fresh_part()]
    backup = maker(parts[1], halls[1], Mock())
    update = maker(parts[0], halls[0], Wire(backup))
    start = parts[0].vector.clone()
    for step in range(2):
        for each in pushed(parts[0], step=step):
            halls[0].push(each)
        while due := halls[0].due():
            update(due)
        assert not parts[0].vector.equal(start)
        assert parts[0].vector.equal(parts[1].vector)
    slots = parts[0].slots()
    assert slots == parts[1].slots()
    assert all(
        parts[0].slot(name, slot).equal(parts[1].slot(name, slot))
        for name, of_parameter in slots.items()
        for slot in of_parameter
    )
