"""What Horovod's options do and refuse, and what holds of its gradients beyond the contract."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distrib.core import Batch, Job
from distrib.errors import ConfigError, LaunchError, MissingDependencyError
from distrib.rendezvous import lost_peer
from distrib.strategies.horovod import engine
from distrib.strategies.horovod.strategy import Horovod
from distrib.testing.proof import Proof, global_batch, job_for, largest_difference, train
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def proof(**options: Any) -> Proof:
    return Proof(strategy={"_target_": "distrib.strategies.horovod.strategy.Horovod", **options})


def reference() -> Proof:
    return Proof(strategy={"_target_": "distrib.strategies.single.Single"})


def test_average_is_the_sum(workers: Workers) -> None:
    """op=average divides what was multiplied before: one process's numbers in float64."""
    ours, theirs = workers.run(train, proof(op="average"), size=3), train(World(), reference())
    assert ours[0].losses == pytest.approx(theirs.losses, abs=1e-9, rel=0)
    assert largest_difference(ours[0].weights, theirs.weights)[0] <= 1e-9


def test_fp16_compression_rounds_and_keeps_the_ranks_alike(workers: Workers) -> None:
    """Gradients rounded to 11 bits change the losses by little, and every rank sees the same norm."""
    ours, theirs = workers.run(train, proof(compression="fp16"), size=2), train(World(), reference())
    furthest = max(abs(a - b) for a, b in zip(ours[0].losses, theirs.losses, strict=True))
    assert 0 < furthest < 2e-3  # 8e-5 seen
    assert ours[0].grad_norms == ours[1].grad_norms


def traced(world: World, folder: str, options: Mapping[str, Any]) -> list[str]:
    """The names of what Horovod noted in its timeline while it trained three steps."""
    log = Path(folder) / "logs" / f"rank-{world.rank}.log"
    train(dataclasses.replace(world, log=log), dataclasses.replace(proof(timeline=True, **options), steps=3))
    written = (log.parent / "horovod-timeline.json").read_text().rstrip().rstrip(",")
    return [event.get("name", "") for event in json.loads(written.removesuffix("]") + "]")]


def test_timeline_shows_fused_gradients(workers: Workers, tmp_path: Path) -> None:
    """The timeline is in the run directory, and shows that gradients ready together travel together."""
    # A slow cycle: all gradients of a step are ready when the ranks next agree.
    events = workers.run(traced, str(tmp_path), {"cycle_time_ms": 20.0}, size=2)[0]
    assert "NEGOTIATE_ALLREDUCE" in events
    assert "MEMCPY_IN_FUSION_BUFFER" in events


def traced_without_fusion(world: World, folder: str) -> tuple[list[str], str]:
    events = traced(world, folder, {"cycle_time_ms": 20.0, "fusion_threshold_mb": 0.0})
    with pytest.raises(ConfigError) as refused:
        train(world, proof(fusion_threshold_mb=1.0))
    return events, str(refused.value)


def test_the_fusion_threshold_is_passed_on_once(tmp_path: Path) -> None:
    """A threshold of 0 sends each gradient alone; another one in the same process is refused."""
    with Workers(2) as fresh:
        events, refusal = fresh.run(traced_without_fusion, str(tmp_path), size=2)[0]
    assert "NEGOTIATE_ALLREDUCE" in events
    assert "MEMCPY_IN_FUSION_BUFFER" not in events
    assert refusal.startswith("strategy.fusion_threshold_mb=1: Horovod cannot change it in a process")


def order_of_events(world: World) -> list[str]:
    """When gradients leave, in a step of two microbatches, and what is left in the environment."""
    import horovod.torch as hvd

    before, events, send = dict(os.environ), [], hvd.allreduce_async_
    strategy = Horovod()
    strategy.setup(job_for(proof()), world)
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    loss = strategy._replica.job.loss

    def noted_loss(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        events.append("forward")
        return loss(model, tensors)

    def noted_send(*args: Any, **kwargs: Any) -> Any:
        events.append("send")
        return send(*args, **kwargs)

    def noted_finish() -> None:
        events.append("finish")
        finish()

    finish = strategy._exchange.finish
    strategy._replica.job = dataclasses.replace(strategy._replica.job, loss=noted_loss)
    strategy._exchange.finish = noted_finish  # type: ignore[method-assign]
    hvd.allreduce_async_ = noted_send
    try:
        strategy.train_step(global_batch(proof(), 0)[:2], 0)
    finally:
        hvd.allreduce_async_ = send
        strategy.close()
    return [*events, *sorted(changed)]


def test_gradients_leave_during_the_last_backward_alone(workers: Workers) -> None:
    """Nothing is sent for the first microbatch, everything before backward of the last returns."""
    count = len(list(job_for(proof()).build_model().parameters()))
    for events in workers.run(order_of_events, size=2):
        assert events == ["forward", "forward", *["send"] * count, "finish"]


class Branches(nn.Module):
    """A model whose middle layer is chosen by the data, and one layer that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4).double() for _ in range(3)])

    def forward(self, which: Tensor, values: Tensor) -> Tensor:
        result: Tensor = self.layers[int(which)](values)
        return result


def branches_job() -> Job:
    return dataclasses.replace(
        job_for(proof()),
        build_model=Branches,
        loss=lambda model, tensors: model(tensors["which"], tensors["values"]).square().sum(),
    )


def train_branches(world: World, strategy: Horovod) -> dict[str, Tensor]:
    """Two steps of one microbatch per branch; the weights after them."""
    strategy.setup(branches_job(), world)
    try:
        for step in range(2):
            batches = [
                Batch(
                    tensors={"which": torch.tensor(i), "values": torch.full((2, 4), 0.3 + i).double()},
                    index=i,
                    step_targets=8,
                )
                for i in range(2)
            ]
            strategy.train_step(strategy.shard.take(batches), step)
        return {name: p.detach().clone() for name, p in strategy._replica.module.named_parameters()}
    finally:
        strategy.close()


def test_parameters_that_few_ranks_or_none_use(workers: Workers) -> None:
    """A layer that one rank used is updated on all; one that nobody used does not decay."""
    strategy = Horovod(find_unused_parameters=True)
    one = workers.run(train_branches, strategy, size=1)[0]
    for weights in workers.run(train_branches, strategy, size=2):
        assert largest_difference(weights, one)[0] <= 1e-12
    assert torch.equal(one["layers.2.weight"], Branches().layers[2].weight)
    assert not torch.equal(one["layers.1.weight"], Branches().layers[1].weight)


def refusal(world: World) -> str:
    with pytest.raises(ConfigError) as refused:
        train_branches(world, Horovod())
    return str(refused.value)


def test_unused_parameters_are_named(workers: Workers) -> None:
    """Without the option the step is refused, naming the parameter and the option."""
    for said in workers.run(refusal, size=2):
        assert said.startswith("strategy.find_unused_parameters=false: parameter 'layers.")


def weights_of_another_rank(world: World) -> float:
    strategy = Horovod()
    job = dataclasses.replace(job_for(proof()), build_model=lambda: nn.Linear(1, 1, bias=False))
    torch.manual_seed(world.rank)
    strategy.setup(job, world)
    try:
        return float(strategy._replica.module.weight.detach())  # type: ignore[arg-type]
    finally:
        strategy.close()


def test_every_rank_starts_from_rank_0s_weights(workers: Workers) -> None:
    """Where machines would draw different initial weights, those of rank 0 count."""
    torch.manual_seed(0)
    expected = float(nn.Linear(1, 1, bias=False).weight.detach())
    assert workers.run(weights_of_another_rank, size=3) == [pytest.approx(expected)] * 3


def test_a_failed_start_names_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Horovod says when it cannot start is passed on with the rank it happened to."""
    import horovod.torch as hvd

    def fail() -> None:
        raise ValueError("Horovod initialization failed.")

    monkeypatch.setattr(hvd, "init", fail)
    with pytest.raises(LaunchError, match=r"did not start on rank 0 of 1 \(Horovod initialization failed"):
        engine.start(World(), options={})


def test_an_address_of_another_host_is_refused() -> None:
    """Rank 0 cannot serve at an address that is not its own: named, with the variable that sets it."""
    elsewhere = World(size=2, num_nodes=2, master_address="192.0.2.1", master_port=1)
    with pytest.raises(LaunchError, match=r"rank 0 cannot serve Horovod at 192\.0\.2\.1 .*MASTER_ADDR"):
        Horovod().setup(job_for(proof()), elsewhere)


def leave_early(world: World) -> bool:
    strategy = Horovod()
    strategy.setup(job_for(proof()), world)
    if world.rank == 1:
        strategy.close()
        return True
    try:
        with pytest.raises(RuntimeError) as error:
            strategy.reduce({"a": torch.ones(3)})
        return lost_peer(error.value)
    finally:
        strategy.close()


def test_a_rank_that_leaves_is_told_to_the_others(workers: Workers) -> None:
    """When one rank closes, another's collective fails at once, as the loss of a peer."""
    assert workers.run(leave_early, size=2, timeout=20) == [True, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"op": "max"}, "strategy.op=max: is one of sum, average, adasum"),
        ({"compression": "bf16"}, "strategy.compression=bf16: is one of none, fp16"),
        ({"cycle_time_ms": -1.0}, "strategy.cycle_time_ms=-1.0: must not be negative"),
        ({"fusion_threshold_mb": float("nan")}, "strategy.fusion_threshold_mb=nan: must not be negative"),
    ],
)
def test_impossible_options(options: dict[str, Any], said: str) -> None:
    """Refused by the constructor, by name, with what would do."""
    with pytest.raises(ConfigError) as refused:
        Horovod(**options)
    assert str(refused.value).startswith(said)


def test_adasum_is_refused_where_it_cannot_run() -> None:
    """Three processes before any starts; gloo before the first collective."""
    with pytest.raises(ConfigError, match=r"strategy\.op=adasum: takes a power of two processes, not 3"):
        Horovod(op="adasum").check(num_processes=3)
    Horovod(op="adasum").check(num_processes=4)
    with pytest.raises(ConfigError, match=r"strategy\.op=adasum: needs Horovod's MPI controller"):
        Horovod(op="adasum").setup(job_for(proof()), World())


def test_a_build_without_nccl_refuses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is refused before anything is placed on it, with the command that builds for it."""
    import horovod.torch as hvd

    monkeypatch.setattr(hvd, "nccl_built", lambda: False)
    with pytest.raises(ConfigError, match="HOROVOD_GPU_OPERATIONS=NCCL make horovod"):
        engine.check(World(device="cuda:0"), adasum=False)


def test_a_timeline_needs_a_run_directory() -> None:
    """Asked for outside a run, it is refused rather than written somewhere."""
    with pytest.raises(ConfigError, match=r"strategy\.timeline=true: needs a run directory"):
        Horovod(timeline=True).setup(job_for(proof()), World())


def test_a_host_without_a_name_is_named_before_horovod_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks its own host up in C++ and takes what it finds for granted."""

    def unknown(*arguments: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(engine, "_fusion_thresholds", set())
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(LaunchError, match="does not know its own name, on which Horovod crashes"):
        engine.start(World(), options={})


def test_a_missing_horovod_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package: what needs it, and the one command that installs it."""
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(MissingDependencyError, match=r"strategy=horovod needs .*`make horovod`") as missing:
        Horovod().setup(job_for(proof()), World())
    assert missing.value.extra == "horovod"


def joined(world: World) -> list[tuple[float, int | None]]:
    """How far weights and moments are from rank 1's, and the step it goes on from, once ranks have synced.

    Rank 0 comes new to a rank 1 that has trained; where rank 2 is, it has seen one step less.
    """
    from distrib.parallel.replica import Replica
    from distrib.parallel.state import named_weights, optimizer_slots
    from distrib.strategies.horovod import collectives
    from distrib.strategies.horovod.elastic import Elastic

    strategy = Horovod()
    strategy.setup(job_for(proof()), world)
    elastic = Elastic(strategy._replica, strategy._exchange, world=world, options={})
    strategy._ranks = elastic
    found = []
    try:
        elastic._sync()
        found.append((0.0, elastic.live_step))
        for step in range(3):
            strategy.train_step(list(strategy.shard.take(global_batch(proof(), step))), step)
        if world.rank == 0:
            elastic._replica, elastic._done = Replica(job_for(proof()), device="cpu"), -1
        if world.rank == 2:
            elastic._done = 2
            next(iter(elastic._replica.module.parameters())).data.zero_()
        elastic._sync()
        replica = elastic._replica
        state = {**named_weights(replica.module), **dict(optimizer_slots(replica.module, replica.optimizer))}
        ours = torch.cat([tensor.detach().double().flatten() for tensor in state.values()])
        theirs = ours.clone()
        collectives.broadcast({"theirs": theirs}, root=1)
        found.append(((ours - theirs).abs().max().item(), elastic.live_step))
        return found
    finally:
        strategy.close()


def test_a_rank_that_joins_takes_the_state_of_the_furthest(workers: Workers) -> None:
    """Weights, moments and step count come from the rank that has done most; at first nobody has any."""
    assert workers.run(joined, size=3) == [[(0.0, None), (0.0, 3)]] * 3


def told_of_hosts(world: World) -> list[str]:
    """What happens in steps around the moment at which the launcher tells rank 0 of new hosts."""
    from distrib.strategies.horovod.elastic import Elastic, RanksChangedError

    strategy, seen = Horovod(), []
    strategy.setup(job_for(proof()), world)
    elastic = Elastic(strategy._replica, strategy._exchange, world=world, options={})
    strategy._ranks = elastic
    try:
        for step in range(3):
            try:
                result = strategy.train_step(list(strategy.shard.take(global_batch(proof(), step))), step)
            except RanksChangedError:
                return [*seen, f"changed after {elastic.live_step}"]
            if world.rank == 0 and step == 1:
                elastic.on_hosts_updated(0, 1)
            strategy.reduce({"loss": result.loss})
            seen.append("step")
        return seen
    finally:
        strategy.close()


def test_all_ranks_leave_between_the_same_two_steps(workers: Workers) -> None:
    """Rank 0 alone is told of new hosts; with the next sums everybody knows, and no step is lost."""
    assert workers.run(told_of_hosts, size=2) == [["step", "step", "changed after 2"]] * 2


def test_elastic_needs_a_launcher_that_changes_ranks() -> None:
    """Under a launcher whose ranks are fixed it is refused, naming the command that it needs."""
    with pytest.raises(ConfigError, match=r"strategy\.elastic=true: needs .* --host-discovery-script"):
        Horovod(elastic=True).setup(job_for(proof()), World())
