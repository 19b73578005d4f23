"""What DeepSpeed's options do and refuse, and what it leaves of a process when it is closed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distrib.errors import CheckpointError, ConfigError, MissingDependencyError
from distrib.state import StateReader, StateWriter
from distrib.strategies.deepspeed import DeepSpeed
from distrib.strategies.deepspeed.settings import check_settings
from distrib.strategies.deepspeed.state import read_elements
from distrib.strategies.deepspeed.validation import refusal
from distrib.targets import build
from distrib.testing.proof import (
    Proof,
    evaluation,
    global_batch,
    job_for,
    largest_difference,
    saved_weights,
    train,
)
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STAGES = (1, 2, 3)
OURS = ("DS_ACCELERATOR", "LOCAL_RANK", "LOCAL_SIZE", "RANK", "WORLD_SIZE")


def proof(*, precision: Any = "fp32", steps: int = 20, **options: Any) -> Proof:
    target = {"_target_": "distrib.strategies.deepspeed.DeepSpeed", **options}
    return Proof(strategy=target, precision=precision, steps=steps)


def reference(like: Proof) -> Proof:
    return dataclasses.replace(like, strategy={"_target_": "distrib.strategies.single.Single"})


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("strategy.stage", {"stage": 0}),
        ("strategy.offload", {"stage": 2, "offload": "parameters"}),
        ("strategy.offload", {"stage": 2, "offload": "disk"}),
        ("strategy.config.train_batch_size", {"config": {"train_batch_size": 8}}),
        ("strategy.config.gradient_clipping", {"config": {"gradient_clipping": 1.0}}),
        ("strategy.config.fp16", {"config": {"fp16": {"enabled": True}}}),
        ("strategy.config.optimizer", {"config": {"optimizer": {"type": "Adam"}}}),
        ("strategy.config.zero_optimization", {"config": {"zero_optimization": 2}}),
        (
            "strategy.config.zero_optimization.stage",
            {"stage": 1, "config": {"zero_optimization": {"stage": 2}}},
        ),
    ],
)
def test_contradictions_are_refused_before_a_process_starts(key: str, options: dict[str, Any]) -> None:
    """A key that our configuration decides, and a setting no stage has, are refused by name."""
    with pytest.raises(ConfigError) as refused:
        DeepSpeed(**options).check(num_processes=2)
    assert refused.value.key == key


def test_what_does_not_contradict_passes() -> None:
    """The stage may be said twice, and other keys are DeepSpeed's own matter."""
    check_settings(
        {"zero_optimization": {"stage": 3, "overlap_comm": True}, "steps_per_print": 5},
        stage=3,
        offload="parameters",
    )


@pytest.mark.parametrize("precision", ["fp64", "fp16"])
def test_precisions_it_does_not_have_are_refused(precision: Any) -> None:
    """fp64 and fp16 are refused before DeepSpeed is imported."""
    with pytest.raises(ConfigError, match=f"precision={precision}"):
        DeepSpeed(stage=2).setup(job_for(proof(precision=precision)), World())
    assert "deepspeed" not in sys.modules


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DeepSpeed, set-up says what to install and gives the environment back."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    before = dict(os.environ)
    strategy = DeepSpeed(stage=1)
    with pytest.raises(MissingDependencyError, match=r"distrib\[deepspeed\]"):
        strategy.setup(job_for(proof()), World())
    strategy.close()
    assert dict(os.environ) == before


def refused(world: World, options: Mapping[str, Any]) -> tuple[str, str, bool]:
    """The key and remedy with which set-up refuses, and whether a process group was made for it."""
    strategy = DeepSpeed(**options)
    try:
        strategy.setup(job_for(proof()), world)
    except ConfigError as error:
        return error.key, error.remedy, dist.is_initialized()
    finally:
        strategy.close()
    return "", "", True


@pytest.mark.parametrize(
    ("config", "key", "reason"),
    [
        ({"zero_optimisation": {}}, "strategy.config.zero_optimisation", "no such key"),
        (
            {"zero_optimization": {"overlap_com": True}},
            "strategy.config.zero_optimization.overlap_com",
            "not permitted",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "large"}},
            "strategy.config.zero_optimization.reduce_bucket_size",
            "integer",
        ),
    ],
)
def test_deepspeed_judges_the_rest(workers: Workers, config: dict[str, Any], key: str, reason: str) -> None:
    """An unknown key and a wrong type are refused by their full name, before the first collective."""
    for found, remedy, connected in workers.run(refused, {"config": config}, size=2):
        assert (found, connected) == (key, False)
        assert reason in remedy


def test_a_refusal_that_names_no_key_shows_them_all() -> None:
    """DeepSpeed's complaints that name nothing of the user's are still about strategy.config."""
    assert refusal({"a": {"b": 1}}, [], "no").key == "strategy.config"
    assert refusal({"a": {"b": 1}}, ["b"], "no").key == "strategy.config.a.b"


@pytest.mark.parametrize(
    "options",
    [
        {"stage": 1, "offload": "optimizer"},
        {"stage": 3, "offload": "parameters"},
        {"stage": 3, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
        {"stage": 2, "config": {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 500}}},
    ],
    ids=["stage 1 offloads", "stage 3 offloads", "stage 3 keeps nothing", "stage 2 in small buckets"],
)
def test_options_change_no_number(workers: Workers, tmp_path: Path, options: dict[str, Any]) -> None:
    """Where state lies and how it travels changes neither the trajectory nor what a checkpoint holds."""
    theirs = train(World(), reference(proof()))
    workers.run(train, dataclasses.replace(proof(steps=7, **options), save_to=str(tmp_path)), size=3)
    tail = dataclasses.replace(proof(**options), first_step=7, load_from=str(tmp_path))
    ours = workers.run(train, tail, size=2)
    assert ours[0].losses == pytest.approx(theirs.losses[7:], abs=1e-5, rel=0)
    assert largest_difference(ours[0].weights, theirs.weights)[0] <= 5e-4


def partly_frozen(world: World, proof: Proof, folder: str) -> tuple[float, list[float]]:
    """An evaluation, then steps with a frozen parameter and decay by shape, reloaded midway."""
    plain = job_for(proof)

    def build_model() -> nn.Module:
        model = plain.build_model()
        model.get_parameter("embedding.weight").requires_grad_(False)
        return model

    job = dataclasses.replace(plain, build_model=build_model, build_optimizer=decay_by_shape)
    strategy = build(proof.strategy, key="strategy", plugins=())
    strategy.setup(job, world)
    try:
        before, losses = evaluation(strategy)["loss"], []
        for step in range(proof.steps):
            if step == 2:
                saved_weights(strategy, world, dataclasses.replace(proof, save_to=folder))
                strategy.load(StateReader(Path(folder)))
            batches = global_batch(proof, step)
            result = strategy.train_step(strategy.shard.take(batches), step)
            losses.append(strategy.reduce({"loss": result.loss})["loss"].item() / batches[0].step_targets)
        return before, losses
    finally:
        strategy.close()


def decay_by_shape(parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Weight decay, strong enough to be seen, for matrices alone."""
    tensors = [tensor for _, tensor in parameters]
    matrices = {"params": [t for t in tensors if t.ndim > 1], "weight_decay": 1.0}
    rest = {"params": [t for t in tensors if t.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, rest], lr=1.0)


@pytest.mark.parametrize("stage", STAGES)
def test_groups_by_shape_and_frozen_parameters(workers: Workers, tmp_path: Path, stage: int) -> None:
    """The optimizer sees true shapes, a frozen parameter stays, and both survive a checkpoint."""
    ours = proof(stage=stage, steps=5)
    before, losses = workers.run(partly_frozen, ours, str(tmp_path), size=3)[1]
    (tmp_path / "single").mkdir()
    expected, theirs = partly_frozen(World(), reference(ours), str(tmp_path / "single"))
    assert before == pytest.approx(expected, abs=1e-3, rel=0)
    assert losses == pytest.approx(theirs, abs=1e-5, rel=0)


@pytest.mark.parametrize("stage", STAGES)
def test_counts_that_differ_are_refused(workers: Workers, tmp_path: Path, stage: int) -> None:
    """Parameters that stand at different steps cannot share DeepSpeed's one count: said, not averaged."""
    train(World(), dataclasses.replace(reference(proof(steps=2)), save_to=str(tmp_path)))
    file = tmp_path / "optimizer" / "optimizer.safetensors"
    slots = {name: tensor.clone() for name, tensor in load_file(file).items()}
    slots["blocks.0.norms.0.bias/step"] += 1
    save_file(slots, file)
    for message in workers.run(loading_fails, dataclasses.replace(proof(stage=stage)), str(tmp_path), size=1):
        assert "one count for all" in message


def loading_fails(world: World, proof: Proof, folder: str) -> str:
    """What a load that must fail says."""
    strategy = DeepSpeed(stage=proof.strategy["stage"])
    strategy.setup(job_for(proof), world)
    try:
        strategy.load(StateReader(Path(folder)))
    except CheckpointError as error:
        return str(error)
    finally:
        strategy.close()
    return "loaded"


def left_behind(world: World, log: str) -> tuple[dict[str, Any], list[str]]:
    """What a whole run changed of this process, and what DeepSpeed's logger wrote to the rank's log."""
    import logging

    before, linear = dict(os.environ), torch.nn.functional.linear
    strategy = DeepSpeed(stage=3)
    strategy.setup(job_for(proof()), dataclasses.replace(world, log=Path(f"{log}/rank-{world.rank}.log")))
    logging.getLogger("DeepSpeed").warning("something to say")
    strategy.close()
    lines = Path(f"{log}/rank-{world.rank}.log").read_text().splitlines()
    changed: dict[str, Any] = {
        name: os.environ.get(name) for name in OURS if os.environ.get(name) != before.get(name)
    }
    changed.update({"process group": True} if dist.is_initialized() else {})
    changed.update({"linear": True} if torch.nn.functional.linear is not linear else {})
    return changed, lines


def test_close_gives_the_process_back(
    workers: Workers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Environment, process group and torch's functions are as before; its words are in the rank's log."""
    for rank, (changed, lines) in enumerate(workers.run(left_behind, str(tmp_path), size=2)):
        assert changed == {}
        assert lines.count("DeepSpeed: something to say") == 1, f"rank {rank}"
    shown = capfd.readouterr()
    assert "something to say" not in shown.out + shown.err


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (4, 3, 2), (3, 0)])
def test_any_run_of_elements_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Every run of elements of a tensor, the empty ones included, is what a whole read would give."""
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    reader = stored(tmp_path, whole)
    flat = whole.flatten()
    for start in range(flat.numel() + 1):
        for size in range(flat.numel() - start + 1):
            found = read_elements(reader, "model", "t", start=start, size=size)
            assert torch.equal(found, flat[start : start + size]), (start, size)


def stored(folder: Path, tensor: Tensor) -> StateReader:
    from distrib.parallel.state import entry

    StateWriter(folder, rank=0, size=1).write("model", [entry("t", tensor)])
    return StateReader(folder)
