"""Being told of gradients, without being kept alive by it."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn

from distrib.parallel.hooks import on_gradients


class Listener:
    """Holds the model whose hooks call it, as an engine does."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.heard: list[tuple[str, Tensor]] = []
        on_gradients(dict(model.named_parameters()), self.hear)

    def hear(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.heard.append((name, parameter.grad.clone()))


def test_each_gradient_is_told_by_name_when_it_is_complete() -> None:
    """Twice over two passes, the second time with what both have added."""
    listener = Listener(nn.Linear(2, 1, bias=False))
    for _ in range(2):
        listener.model(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert [(name, gradient.tolist()) for name, gradient in listener.heard] == [
        ("weight", [[1.0, 2.0]]),
        ("weight", [[2.0, 4.0]]),
    ]


def test_the_model_goes_with_who_listens() -> None:
    """The garbage collector finds the circle; while the model lives on its own, nobody is told."""
    listener = Listener(nn.Linear(2, 1))
    kept = listener.model
    gone, heard = weakref.ref(listener), listener.heard
    del listener
    gc.collect()
    assert gone() is None
    kept(torch.ones(1, 2)).sum().backward()
    assert heard == []
    model = weakref.ref(kept)
    del kept
    gc.collect()
    assert model() is None
