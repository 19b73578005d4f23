"""Bayesian search: each trial is where, by the results so far, an improvement is likeliest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from distrib.errors import MissingDependencyError
from distrib.sweeps.base import Parallel, Search, at_least_one
from distrib.sweeps.results import Objective, Result
from distrib.sweeps.space import Space, read

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class Optuna(Search):
    """The Tree-structured Parzen Estimator of Optuna (Bergstra et al., NIPS 2011).

    Optuna's study is built anew for every trial from the results in ``sweep.json``, and its sampler is
    seeded by ``seed`` and the trial's number. So there is one record of the sweep and not two, and one
    that was killed goes on as if it had not been; a stored study would forget its sampler's state.
    With trials one after another the same seed gives the same trials.

    Args:
        num_trials: how many.
        seed: of the sampler.
        startup_trials: drawn at random before the estimator has enough to go by.
        parallel, prune_after_trials, prune_after_steps: as in `Search`.
    """

    def __init__(
        self,
        *,
        num_trials: int = 20,
        seed: int = 0,
        startup_trials: int = 10,
        parallel: Parallel = "auto",
        prune_after_trials: int | None = None,
        prune_after_steps: int = 0,
    ) -> None:
        super().__init__(
            parallel=parallel, prune_after_trials=prune_after_trials, prune_after_steps=prune_after_steps
        )
        self.num_trials = at_least_one(num_trials)
        self.seed = seed
        self.startup_trials = startup_trials

    def check(self) -> None:
        """As `Search.check`."""
        if find_spec("optuna") is None:
            raise MissingDependencyError("optuna", extra="sweep", needed_for="sweep=optuna")

    def plan(self, space: Space) -> list[tuple[str, ...]]:
        """None: every trial depends on those before."""
        return []

    def propose(
        self, space: Space, past: Sequence[Result], *, objective: Objective
    ) -> tuple[str, ...] | None:
        """As `Search.propose`."""
        if len(past) >= self.num_trials:
            return None
        distributions: dict[str, Any] = {
            key: values.draw(key, Distributions()) for key, values in space.items()
        }
        study = self._study(len(past), objective=objective)
        study.add_trials([_told(result, space, distributions) for result in past])
        values = study.ask(distributions).params
        return tuple(f"{key}={dimension.text(values[key])}" for key, dimension in space.items())

    def _study(self, number: int, *, objective: Objective) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "big"), n_startup_trials=self.startup_trials
        )
        directions = optuna.study.StudyDirection
        return optuna.create_study(
            direction=directions.MAXIMIZE if objective.higher_is_better else directions.MINIMIZE,
            sampler=sampler,
        )


class Distributions:
    """What a setting may be, in Optuna's terms: asked like a trial, it answers with the whole range."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of ``choices``."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(tuple(choices))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> Any:
        """A number from ``low`` to ``high``."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(low, high, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """A whole number from ``low`` to ``high``."""
        from optuna.distributions import IntDistribution

        return IntDistribution(low, high, log=log, step=step)


def _told(result: Result, space: Space, distributions: dict[str, Any]) -> FrozenTrial:
    """A trial as Optuna knows it."""
    from optuna.trial import TrialState, create_trial

    states = {"done": TrialState.COMPLETE, "stopped": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    states |= {"running": TrialState.RUNNING, "waiting": TrialState.RUNNING}
    state = states.get(result.status, TrialState.FAIL)
    if state == TrialState.COMPLETE and result.value is None:
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=result.value if state == TrialState.COMPLETE else None,
        params=read(space, result.overrides),
        distributions=distributions,
        intermediate_values=dict(result.curve),
    )
