"""FSDP beyond the contract: its reduce-scatter, its options, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from distrib.errors import ConfigError
from distrib.strategies.fsdp import FSDP
from distrib.targets import build
from distrib.testing.proof import Proof, evaluation, global_batch, job_for, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SINGLE = {"_target_": "distrib.strategies.single.Single"}


def fsdp(**options: Any) -> dict[str, Any]:
    return {"_target_": "distrib.strategies.fsdp.FSDP", **options}


def scattered(world: World, numel: int, dtype: torch.dtype) -> bool:
    """Whether this rank gets its part of the sum, of numbers that every type adds without rounding."""
    import torch.distributed as dist

    from distrib.parallel.ring import RingReduceScatter
    from distrib.rendezvous import process_group

    process_group(world)
    everyone = torch.stack([torch.arange(numel * world.size) % 7 + rank for rank in range(world.size)])
    ring = RingReduceScatter()
    output = ring.allocate((numel,), dtype=dtype, device=torch.device("cpu"))
    group = dist.distributed_c10d._get_default_group()
    work = ring(output, everyone[world.rank].to(dtype), group, dist.ReduceOp.SUM)
    return work is None and torch.equal(output.long(), everyone.sum(0).view(world.size, -1)[world.rank])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ring_gives_each_rank_its_part_of_the_sum(workers: Workers, size: int, dtype: torch.dtype) -> None:
    """Any number of ranks, odd lengths and a single element, in every type that FSDP reduces."""
    for numel in (1, 7, 1001):
        assert workers.run(scattered, numel, dtype, size=size) == [True] * size


def reduced(world: World, proof: Proof) -> tuple[int, int]:
    """Numbers that went round the ring in a step of one round, and by torch's reduce-scatter."""
    import torch.distributed as dist

    from distrib.parallel import ring

    counts = {"ring": 0, "torch": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, module, function in (
            ("ring", ring, "reduce_scatter"),
            ("torch", dist, "reduce_scatter_single"),
        ):
            real = getattr(module, function)

            def counted(
                output: Any, input: Any, *, _name: str = name, _real: Any = real, **options: Any
            ) -> Any:
                counts[_name] += input.numel()
                return _real(output, input, **options)

            patch.setattr(module, function, counted)
        train(world, proof)
    return counts["ring"], counts["torch"]


def test_every_gradient_goes_round_the_ring(workers: Workers) -> None:
    """On gloo nothing is left to torch's reduce-scatter, which sends twice as much."""
    proof = Proof(strategy=fsdp(), steps=1, global_batch_size=8)
    parameters = sum(parameter.numel() for parameter in job_for(proof).build_model().parameters())
    assert workers.run(reduced, proof, size=2) == [(parameters, 0)] * 2


def averaged(world: World) -> str:
    import torch.distributed as dist

    from distrib.parallel.ring import RingReduceScatter
    from distrib.rendezvous import process_group

    process_group(world)
    group = dist.distributed_c10d._get_default_group()
    with pytest.raises(ValueError, match="a ring adds up"):
        RingReduceScatter()(torch.zeros(1), torch.zeros(2), group, dist.ReduceOp.AVG)
    dist.barrier()  # the other rank may be connecting still: it would find this one gone
    return "refused"


def test_ring_refuses_what_is_not_a_sum(workers: Workers) -> None:
    """An average that FSDP might ask for is not silently a sum."""
    assert workers.run(averaged, size=2) == ["refused"] * 2


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("option", ["reshard_after_forward", "cpu_offload"])
def test_options_that_change_no_result(workers: Workers, option: str, size: int) -> None:
    """Whatever is kept gathered, or offloaded, the trajectory is that of one process."""
    proof = Proof(strategy=fsdp(**{option: option == "cpu_offload"}))
    exact = train(World(), dataclasses.replace(proof, strategy=SINGLE))
    ours = workers.run(train, proof, size=size)[0]
    assert ours.losses == pytest.approx(exact.losses, abs=1e-9, rel=0)
    assert largest_difference(ours.weights, exact.weights)[0] <= 1e-9


def evaluated_every_step(world: World, proof: Proof) -> list[float]:
    """The evaluation's loss before each step, beginning with the untrained model."""
    strategy = build(proof.strategy, key="strategy", plugins=())
    strategy.setup(job_for(proof), world)
    try:
        losses = []
        for step in range(proof.steps):
            losses.append(evaluation(strategy)["loss"])
            everything = global_batch(proof, step)
            strategy.train_step(list(strategy.shard.take(everything)) or [everything[0].ghost()], step)
        return losses
    finally:
        strategy.close()


@pytest.mark.parametrize("reshard", [True, False])
def test_evaluating_before_and_between_steps(workers: Workers, reshard: bool) -> None:
    """Weights that an evaluation gathered can be trained, and the next evaluation sees them trained."""
    proof = Proof(strategy=fsdp(reshard_after_forward=reshard), steps=4)
    exact = evaluated_every_step(World(), dataclasses.replace(proof, strategy=SINGLE))
    assert workers.run(evaluated_every_step, proof, size=2)[0] == pytest.approx(exact, abs=1e-9)
    assert exact[0] != pytest.approx(exact[-1], abs=1e-2)


def test_bf16_is_that_of_one_process(workers: Workers) -> None:
    """Autocast rounds the same numbers alike on every rank, so only the order of fp32 sums differs."""
    proof = Proof(strategy=fsdp(), precision="bf16")
    exact = train(World(), dataclasses.replace(proof, strategy=SINGLE))
    ours = workers.run(train, proof, size=2)[0]
    assert ours.losses == pytest.approx(exact.losses, abs=1e-5, rel=0)
    assert largest_difference(ours.weights, exact.weights)[0] <= 5e-4


def test_gathering_in_bf16_stays_within_its_rounding(workers: Workers) -> None:
    """Weights rounded to 8 bits move the loss by less than one such rounding of it (seen: 6e-4 of 3.7)."""
    proof = Proof(strategy=fsdp(param_dtype="bf16"), precision="bf16")
    ours = workers.run(train, proof, size=2)[0]
    assert {weight.dtype for weight in ours.weights.values()} == {torch.float32}
    exact = train(World(), dataclasses.replace(proof, strategy=SINGLE, precision="fp32"))
    assert ours.losses == pytest.approx(exact.losses, rel=2**-8)
    autocast = train(World(), dataclasses.replace(proof, strategy=SINGLE))
    assert abs(ours.losses[0] - autocast.losses[0]) > 1e-5, "weights were not gathered in bf16"


def test_refusals() -> None:
    """What it cannot do is refused by its key, before a process group is made."""
    with pytest.raises(ConfigError, match=r"strategy\.shard_size=2: must divide .* 3"):
        FSDP(shard_size=2).check(num_processes=3)
    with pytest.raises(ConfigError, match=r"strategy\.shard_size=0"):
        FSDP(shard_size=0).check(num_processes=2)
    with pytest.raises(ConfigError, match=r"precision=fp16: .*bf16"):
        FSDP().setup(job_for(Proof(strategy=fsdp(), precision="fp16")), World())
    with pytest.raises(ConfigError, match=r"strategy\.param_dtype=bf16: .*precision=fp32"):
        FSDP(param_dtype="bf16").setup(job_for(Proof(strategy=fsdp(), precision="fp32")), World())
