"""How far a run may be from its one-process reference: what rounding does, and a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from distrib.core import PrecisionName

GROWTH = 10.0
"""A difference of rounding may be this many times the one that a single nudge of the weights makes."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Largest differences that count as the same."""

    loss: float
    grad_norm: float
    weights: float
    evaluation: float

    def widened(self, floor: Mapping[str, float], *, given: Mapping[str, float]) -> Bounds:
        """With room for ``floor``, what rounding alone did; a bound that the user gave stays as it is."""
        wide = {name: max(value, GROWTH * floor[name]) for name, value in asdict(self).items()}
        return Bounds(**{**wide, **given})

    def broken_by(self, largest: Mapping[str, float]) -> list[str]:
        """The names of the bounds that these differences break."""
        return [name for name, value in asdict(self).items() if not largest[name] <= value]


NAMES = tuple(field.name for field in fields(Bounds))

# On a CPU torch adds up squares of fp32 numbers one after another, and an engine adds them up in pieces: the
# norm of 12 million numbers was off by 5e-4 in one piece and by 2e-4 in two (torch 2.13).
_FP32 = Bounds(loss=1e-5, grad_norm=1e-3, weights=5e-4, evaluation=1e-3)

BOUNDS: dict[PrecisionName, Bounds] = {
    "fp64": Bounds(loss=1e-9, grad_norm=1e-8, weights=1e-9, evaluation=1e-9),
    "fp32": _FP32,
    # A bf16 number has 8 significant bits: rounding moves it by up to 2**-8 of its value. Sums in
    # another order change fp32 weights in their last bit, some then round to the next bf16 number,
    # and a loss near 1 may move by as much as one rounding; a norm adds up squares of such numbers
    # (twice that) over two passes (four times). Weights stay in fp32, but AdamW makes whole steps of
    # noise: for them the nudged run says more than a number here could.
    "bf16": replace(_FP32, loss=2.0**-8, grad_norm=2.0**-6, evaluation=2.0**-6),
    "fp16": replace(_FP32, loss=2.0**-11, grad_norm=2.0**-9, evaluation=2.0**-9),
}
"""By precision, before `Bounds.widened`. fp32 and fp64 are what the project promises on its own tests."""
