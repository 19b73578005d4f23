"""Every strategy's checkpoint, at every world size, is resumed by every other at every other size."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import pytest
from strategies import CANDIDATES, Candidate
from test_contract import LOSS_BOUND, WEIGHT_BOUND, FrozenTarget, reference, trained

from distrib.testing.proof import Proof, Trajectory, largest_difference, train
from distrib.testing.workers import Workers

SIZES = (1, 2, 4)
HALF, STEPS = 5, 10

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def proof(candidate: Candidate) -> Proof:
    return Proof(strategy=candidate.target, precision="fp32", steps=STEPS)


@lru_cache
def unbroken() -> Trajectory:
    """Ten steps of one process."""
    single = {"_target_": "distrib.strategies.single.Single"}
    return reference(Proof(strategy=FrozenTarget(single), precision="fp32", steps=STEPS))


@pytest.mark.parametrize("saver", CANDIDATES, ids=lambda c: c.name)
def test_every_ordered_pair(workers: Workers, tmp_path: Path, saver: Candidate) -> None:
    """5 steps with one, 5 more with another at another world size: 10 unbroken ones."""
    whole = unbroken()
    tried = 0
    for before in sorted(set(SIZES) & set(saver.sizes)):
        saved = tmp_path / str(before)
        saved.mkdir()
        workers.run(train, dataclasses.replace(proof(saver), steps=HALF, save_to=str(saved)), size=before)
        for loader in CANDIDATES:
            for after in set(SIZES) & set(loader.sizes):
                if (saver, before) == (loader, after):
                    continue
                tail = dataclasses.replace(proof(loader), first_step=HALF, load_from=str(saved))
                ours = trained(workers.run(train, tail, size=after))
                what = f"{saver.name} on {before} to {loader.name} on {after}"
                for rank in ours:
                    expected = pytest.approx(whole.losses[HALF:], abs=LOSS_BOUND["fp32"], rel=0)
                    assert rank.losses == expected, what
                difference, name = largest_difference(ours[0].weights, whole.weights)
                assert difference <= WEIGHT_BOUND["fp32"], f"{what}: {name} differs by {difference}"
                tried += 1
    assert tried >= len(CANDIDATES)
