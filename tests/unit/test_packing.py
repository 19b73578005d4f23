"""How a gradient is packed for a parameter server: rounded or sparse, and what is kept for the next."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distrib.errors import ConfigError
from distrib.state import StateReader, StateWriter
from distrib.strategies.parameter_server import ParameterServer
from distrib.strategies.parameter_server.facts import Facts
from distrib.strategies.parameter_server.feedback import Feedback
from distrib.strategies.parameter_server.layout import Layout, make_layout
from distrib.strategies.parameter_server.outbox import Outbox
from distrib.strategies.parameter_server.packing import TopK, packing_of
from distrib.strategies.parameter_server.vectors import Vectors

SHARE = 0.1
DTYPES = [torch.float32, torch.float64]


def draw(numel: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sent(compression: str, gradient: Tensor, *, share: float = SHARE) -> tuple[Tensor, Tensor, int]:
    """What a worker is left with, what a server makes of the message, and the message's bytes."""
    packing = packing_of(compression, topk_share=share)  # type: ignore[arg-type]
    assert packing is not None
    run, arrived = gradient.clone(), torch.full_like(gradient, 7.0)
    message = packing.pack(run)
    inbox = packing.inbox(arrived)
    assert (inbox.dtype, inbox.shape) == (message.dtype, message.shape)
    packing.unpack(inbox.copy_(message), arrived)
    return run, arrived, message.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("compression", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_halves_are_rounded_once(compression: str, half: torch.dtype, dtype: torch.dtype) -> None:
    """What arrives is torch's rounding of every element, in two bytes each."""
    gradient = draw(1001, dtype=dtype) * 1e-3
    left, arrived, size = sent(compression, gradient)
    assert torch.equal(arrived, gradient.to(half).to(dtype))
    assert torch.equal(left, arrived)
    assert not torch.equal(arrived, gradient)
    assert size == 2 * 1001


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 7, 1001])
def test_top_k_sends_the_largest_as_they_are(numel: int, dtype: torch.dtype) -> None:
    """Value and place of a tenth of the elements, rounded up; zero is what the server has of the others."""
    gradient = draw(numel, dtype=dtype)
    left, arrived, size = sent("topk", gradient)
    count = math.ceil(SHARE * numel)
    largest = gradient.abs().argsort(descending=True)[:count]
    expected = torch.zeros_like(gradient)
    expected[largest] = gradient[largest]
    assert torch.equal(arrived, expected)
    assert torch.equal(left, arrived)
    assert size == count * (gradient.element_size() + 4)


def test_all_of_it_is_exact() -> None:
    """With a share of 1 the gradient arrives to the bit."""
    gradient = draw(1001)
    _, arrived, _ = sent("topk", gradient, share=1.0)
    assert torch.equal(arrived, gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compression", ["bf16", "fp16", "topk"])
def test_what_is_not_finite_arrives(compression: str, bad: float) -> None:
    """One NaN among a thousand elements reaches the server, which skips the step."""
    gradient = draw(1001)
    gradient[500] = bad
    _, arrived, _ = sent(compression, gradient, share=0.001)
    assert not math.isfinite(arrived[500].item())


SIZES = {"first": 30, "second": 12, "third": 40}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(size, dtype=dtype)) for name, size in SIZES.items()}


def layout_of(*, num_servers: int, bucket_numel: int) -> Layout:
    return make_layout(SIZES, num_servers=num_servers, bucket_numel=bucket_numel)


class Sender:
    """A worker's gradients and errors, with two servers."""

    def __init__(self, *, worker: int = 0, num_workers: int = 2, bucket_numel: int = 45) -> None:
        self.layout = layout_of(num_servers=2, bucket_numel=bucket_numel)
        held = parameters()
        self.gradients = Vectors(self.layout, held)
        self.feedback = Feedback(self.layout, held, worker=worker, num_workers=num_workers)
        self.outbox = Outbox(TopK(share=SHARE), self.gradients, self.feedback)

    def send(
        self, gradient: dict[str, Tensor], *, targets: int = 1, counts: bool = True
    ) -> dict[str, Tensor]:
        """What is sent of a step's gradient; not ``counts``: the step is run again."""
        self.outbox.begin(targets=targets)
        for name, value in gradient.items():
            self.gradients.hold(name, value)
        for number, bucket in enumerate(self.layout.buckets):
            self.outbox.messages(number, bucket.cuts)
        self.outbox.finish(counts=counts)
        return {name: self.gradients.view(name).clone() for name in SIZES}

    def kept(self) -> dict[str, Tensor]:
        return {name: self.feedback._errors.view(name).clone() for name in SIZES}


def gradient_of(seed: int) -> dict[str, Tensor]:
    return {name: draw(size, seed=100 * seed + n) for n, (name, size) in enumerate(SIZES.items())}


def test_nothing_is_lost() -> None:
    """In each of 20 steps what is sent and what is kept are the gradient and what was kept, to the bit."""
    sender = Sender()
    for step in range(20):
        gradient, before = gradient_of(step), sender.kept()
        went, after = sender.send(gradient), sender.kept()
        for name in SIZES:
            assert torch.equal(went[name] + after[name], gradient[name] + before[name])
            assert (went[name] == 0).logical_or(after[name] == 0).all()
    assert all(value.any() for value in sender.kept().values())


def test_a_gradient_that_is_not_finite_leaves_the_errors_alone() -> None:
    """They are what they were before the step that is skipped, so the next gradient is finite again."""
    sender = Sender()
    sender.send(gradient_of(0))
    before = sender.kept()
    went = sender.send({name: value * math.nan for name, value in gradient_of(1).items()})
    assert any(value.isnan().any() for value in went.values())
    for name, value in sender.kept().items():
        assert torch.equal(value, before[name])
    assert all(value.isfinite().all() for value in sender.send(gradient_of(2)).values())


def test_a_push_that_does_not_count_leaves_the_errors_alone() -> None:
    """The step is run again with other microbatches, from the same errors."""
    sender = Sender()
    sender.send(gradient_of(0))
    before = sender.kept()
    sender.send(gradient_of(1), counts=False)
    assert all(torch.equal(value, before[name]) for name, value in sender.kept().items())
    sender.send(gradient_of(1))
    assert not all(torch.equal(value, before[name]) for name, value in sender.kept().items())


def test_without_targets_nothing_kept_is_sent() -> None:
    """A server may pass over such a push: what was kept stays for the next."""
    sender = Sender()
    sender.send(gradient_of(0))
    before = sender.kept()
    went = sender.send({name: torch.zeros(size) for name, size in SIZES.items()}, targets=0)
    assert not any(value.any() for value in went.values())
    assert all(torch.equal(value, before[name]) for name, value in sender.kept().items())


def test_a_parameter_is_sent_for_what_was_kept_of_it() -> None:
    """Without a gradient of its own in a step, and only where something of it was sent."""
    sender = Sender(bucket_numel=1)
    sender.send(gradient_of(0))
    zeros = {name: torch.zeros(size) for name, size in SIZES.items()}
    sender.send(zeros)
    assert sender.outbox.also_sent({"first", "third"}) == {"first", "third"}
    assert Sender().outbox.also_sent(set(SIZES)) == set()


def saved(folder: Path, *, num_workers: int) -> list[dict[str, Tensor]]:
    """The errors of so many workers after two steps, written into a checkpoint."""
    kept = []
    for worker in range(num_workers):
        sender = Sender(worker=worker, num_workers=num_workers)
        for step in (2 * worker, 2 * worker + 1):
            sender.send(gradient_of(step))
        sender.outbox.save(StateWriter(folder, rank=worker, size=num_workers + 1))
        kept.append(sender.kept())
    return kept


def test_errors_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    """Each worker's own, however the buckets are cut now; at another number of workers they are dropped."""
    kept = saved(tmp_path, num_workers=2)
    for worker in range(2):
        sender = Sender(worker=worker, bucket_numel=10)
        sender.send(gradient_of(9))
        reader = StateReader(tmp_path)
        sender.outbox.load(reader)
        assert all(torch.equal(value, kept[worker][name]) for name, value in sender.kept().items())
        assert reader.dropped() == []
    other, reader = Sender(worker=0, num_workers=3), StateReader(tmp_path)
    other.send(gradient_of(9))
    other.outbox.load(reader)
    assert not any(value.any() for value in other.kept().values())
    assert reader.dropped() == ["topk"]


def test_refusals() -> None:
    """What cannot be sent this way is refused by its key."""
    for options, message in [
        ({"mode": "average", "compression": "topk"}, r"strategy\.compression=topk: is of gradients"),
        ({"mode": "average", "compression": "bf16"}, r"strategy\.compression=bf16: is of gradients"),
        ({"compression": "topk", "topk_share": 0.0}, r"strategy\.topk_share=0\.0"),
        ({"compression": "topk", "topk_share": 1.5}, r"strategy\.topk_share=1\.5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ParameterServer(**options).check(num_processes=3)  # type: ignore[arg-type]


def test_it_says_what_it_changes() -> None:
    """Whatever is not one process's trajectory is named."""
    assert ParameterServer().changes() is None
    assert ParameterServer(mode="stale", staleness=0).changes() is None
    assert ParameterServer(compression="topk").changes() == "gradients are sent as topk"
    both = ParameterServer(mode="async", compression="bf16").changes()
    assert both == "workers wait less for each other (mode=async), gradients are sent as bf16"


def test_staleness_is_counted_in_bins() -> None:
    """Each push in one bin, from 0 to 8 or more; every number begins anew when it is taken."""
    facts = Facts(num_workers=2)
    for updates in (0, 0, 1, 3, 4, 7, 8, 100):
        facts.staleness(updates)
    facts.waited(1, 0.25)
    facts.waited(1, 0.5)
    taken = facts.taken()
    counts = {name: value for name, value in taken.items() if name.startswith("staleness/")}
    assert list(counts.values()) == [2, 1, 0, 1, 2, 2]
    assert list(counts)[-2:] == ["staleness/4-7", "staleness/8_or_more"]
    assert (taken["staleness"], taken["staleness_max"]) == (123 / 8, 100)
    assert (taken["waited_seconds/worker_0"], taken["waited_seconds/worker_1"]) == (0.0, 0.75)
    assert facts.taken().keys() == taken.keys()
    assert not any(value for name, value in facts.taken().items() if name != "server_load")
