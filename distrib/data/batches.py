"""Which examples optimizer step ``t`` trains on: a pure function of the seed and ``t``.

No rank, world size or microbatch size enters the choice, so the same steps see the same global
batches wherever and however they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from distrib.data.encoded import EncodedSet

Indices = np.ndarray[Any, np.dtype[np.int64]]

POOL = 50
"""Global batches sorted together by length: enough to save most padding, few enough to stay random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One global batch, cut into microbatches in the order that every strategy shares."""

    microbatches: Sequence[Indices]
    examples: int
    tokens: int
    targets: int


class Batches:
    """The global batches of every epoch; each epoch holds every example exactly once.

    The last batch of an epoch may be short. Within a batch, examples go from long to short, so
    that a microbatch holds similar lengths and the largest one comes first.
    """

    def __init__(
        self,
        encoded: EncodedSet,
        *,
        seed: int,
        global_batch_size: int,
        microbatch_size: int,
        group_by_length: bool = False,
    ) -> None:
        self._lengths = encoded.lengths
        self._targets = encoded.targets
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._microbatch_size = microbatch_size
        self._group_by_length = group_by_length
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        self.steps_per_epoch = -(-len(encoded) // global_batch_size)

    def step_plan(self, step: int) -> StepPlan:
        """The global batch of optimizer step ``step``, counted from 0."""
        number, place = divmod(step, self.steps_per_epoch)
        epoch, size = self._epoch(number), self._microbatch_size
        start = place * self._global_batch_size
        chosen = epoch.order[start : start + self._global_batch_size]
        return StepPlan(
            microbatches=[chosen[i : i + size] for i in range(0, len(chosen), size)],
            examples=len(chosen),
            tokens=int(epoch.tokens[place]),
            targets=int(epoch.targets[place]),
        )

    def _plan_epoch(self, number: int) -> _Epoch:
        order = permutation(len(self._lengths), seed=self._seed, epoch=number)
        if self._group_by_length:
            order = self._grouped(order, epoch=number)
        batch = np.arange(len(order)) // self._global_batch_size
        order = order[np.lexsort((-self._lengths[order], batch))]
        starts = np.arange(0, len(order), self._global_batch_size)
        return _Epoch(
            order=order,
            tokens=np.add.reduceat(self._lengths[order], starts),
            targets=np.add.reduceat(self._targets[order], starts),
        )

    def _grouped(self, order: Indices, *, epoch: int) -> Indices:
        """Sorts pools of batches by length, then shuffles the full batches; a short one stays last."""
        size = self._global_batch_size
        num_full = len(order) // size
        pool = np.arange(num_full * size) // (POOL * size)
        full = order[: num_full * size]
        batches = full[np.lexsort((self._lengths[full], pool))].reshape(num_full, size)
        shuffled = batches[permutation(num_full, seed=self._seed, epoch=epoch, purpose=1)]
        return np.concatenate([shuffled.reshape(-1), order[num_full * size :]])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Epoch:
    """All global batches of an epoch end to end, with the sums of each: a step only looks them up."""

    order: Indices
    tokens: Indices
    targets: Indices


def permutation(count: int, *, seed: int, epoch: int, purpose: int = 0) -> Indices:
    """A random order of ``count`` things.

    Ranked raw draws, because numpy keeps those equal between its versions and not ``permutation``.
    """
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose])).random_raw(count)
    return np.argsort(draws, kind="stable")
