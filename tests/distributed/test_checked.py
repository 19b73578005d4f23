"""Operations are compared while that is asked for, and run as if nothing had been afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def check_and_stop(world: World) -> tuple[list[bool], list[float], str]:
    """DistributedDataParallel over checked operations, then over the same group unchecked."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from distrib.diagnosis.checked import is_checking, stop_checking
    from distrib.rendezvous import process_group

    process_group(replace(world, check_collectives=True))
    states, sums = [is_checking(world.device)], []
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    for _ in range(2):
        model(torch.full((1, 3), float(world.rank + 1))).sum().backward()
        assert model.module.weight.grad is not None
        sums.append(model.module.weight.grad.sum().item())
        model.zero_grad()
        stop_checking(world.device)
        states.append(is_checking(world.device))
    backend = type(dist.group.WORLD._get_backend(torch.device("cpu"))).__name__  # type: ignore[union-attr]
    return states, sums, backend


def test_a_strategy_runs_checked_and_unchecked_alike(workers: Workers) -> None:
    """The same gradients, and gloo's own group under it after the first step."""
    for states, sums, backend in workers.run(check_and_stop, size=2, timeout=120):
        assert states == [True, False, False]
        assert sums == [9.0, 9.0]
        assert backend == "ProcessGroupGloo"
