"""Being told of every gradient that backward has added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from weakref import WeakMethod

from torch import Tensor, nn

Told = Callable[[str, Tensor], None]


def on_gradients(parameters: Mapping[str, nn.Parameter], tell: Told) -> None:
    """Has backward call ``tell(name, parameter)`` whenever a parameter's ``.grad`` is complete for one pass.

    Args:
        tell: a bound method, whose object is not kept alive. torch keeps these hooks where Python's garbage
            collector does not look: one that held an object which holds the parameters would keep the
            model, and whatever else that object has, until the process ends.
    """
    method = WeakMethod(tell)
    for name, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(partial(_call, method, name))  # type: ignore[no-untyped-call]


def _call(method: WeakMethod[Told], name: str, parameter: Tensor) -> None:
    if (tell := method()) is not None:
        tell(name, parameter)
