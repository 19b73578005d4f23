"""Which trials are not worth finishing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from distrib.sweeps.results import Objective

Curve = Sequence[tuple[int, float]]
"""The objective by step, in order."""


def lags(
    curve: Curve, others: Sequence[Curve], *, objective: Objective, after_trials: int, after_steps: int
) -> bool:
    """Whether a trial's best evaluation so far is worse than the median of the others at its last step.

    The median rule of Google Vizier (Golovin et al., KDD 2017) as Optuna's ``MedianPruner`` applies it.

    Args:
        curve: of the trial in question.
        others: of the trials that ran to their end.
        objective: says which way is better.
        after_trials: nothing is judged by fewer others.
        after_steps: nothing is judged before this step.
    """
    if not curve or len(others) < after_trials or curve[-1][0] < after_steps:
        return False
    step = curve[-1][0]
    there = [values[step] for values in map(_by_step, others) if step in values]
    if not there:
        return False
    own = [value for _, value in curve]
    median = statistics.median(there)
    return max(own) < median if objective.higher_is_better else min(own) > median


def _by_step(curve: Curve) -> Mapping[int, float]:
    return dict(curve)
