"""The parts of `distrib compare`: the stopwatch around a strategy, what it counts, and what is said of it."""

from __future__ import annotations

import io
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from distrib.cli.cells import Common
from distrib.cli.compare import fitting
from distrib.cli.compare_table import memory_table, time_table
from distrib.cli.main import main
from distrib.config import RunConfig
from distrib.core import Batch, Job, StepResult
from distrib.errors import LaunchError
from distrib.proof.clocks import active_seconds
from distrib.proof.compare import Comparison, Entry, Sample, advice, as_json, measured
from distrib.proof.compare_page import write_page
from distrib.proof.jobs import Cell
from distrib.proof.measured import WARM_UP, Measured
from distrib.proof.memory import MemoryWatch, SavedTensors
from distrib.proof.memory_parts import PARTS
from distrib.proof.sockets import SentBytes
from distrib.targets import build
from distrib.testing.fake import Fake
from distrib.world import World

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counters are Linux's")


@linux
def test_bytes_sent_are_those_of_this_process() -> None:
    """One megabyte over a TCP connection counts one megabyte; a local socket and a file count nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as ours:
        ours.connect(server.getsockname())
        theirs, _ = server.accept()
        counter = SentBytes()
        with theirs:
            for _ in range(16):
                ours.sendall(b"x" * 65536)
                assert len(theirs.recv(65536, socket.MSG_WAITALL)) == 65536
            a, b = socket.socketpair()
            with a, b:
                a.sendall(b"y" * 1000)
                assert counter.since_last() == 2**20
        assert counter.since_last() == 0


@linux
def test_a_socket_that_closes_takes_nothing_off_the_count() -> None:
    """Another job's connections, closed by the collector in the middle of a measurement."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as early:
            early.sendall(b"x" * 1000)
            counter = SentBytes()
        with socket.create_connection(server.getsockname()) as late:
            late.sendall(b"x" * 10)
            assert counter.since_last() == 10


@linux
def test_counting_leaves_no_descriptor_open() -> None:
    """It is asked after every step."""
    import os

    counter = SentBytes()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        counter.since_last()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sleeping_is_waiting_and_working_is_not() -> None:
    """The clock stands still while the thread sleeps and runs while it works."""
    start = active_seconds()
    time.sleep(0.2)
    slept = active_seconds() - start
    wall = time.perf_counter()
    while time.perf_counter() - wall < 0.2:
        pass
    worked = active_seconds() - start - slept
    assert slept < 0.05
    assert worked > slept


@pytest.mark.slow
def test_memory_is_divided_by_what_it_is_for() -> None:
    """Sizes of a small model under Adam, to the byte; a tensor that nobody owns is in the last part."""
    model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.ReLU(), nn.Linear(200, 10, bias=False))
    optimizer = torch.optim.Adam(model.parameters())
    inputs = torch.randn(32, 100)

    def step() -> None:
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    stray = torch.zeros(12345)
    watch = MemoryWatch()
    with watch.watching():
        step()
    weights = 4 * (100 * 200 + 200 * 10)
    assert list(watch.parts) == list(PARTS)
    assert watch.parts["parameters"] == weights
    assert watch.parts["gradients"] == weights
    assert watch.parts["optimizer"] == 2 * weights + 2 * 4  # and a step counter per parameter
    # Kept for backward: the input, and what ReLU gives, once.
    assert watch.parts["activations"] == 4 * (32 * 100 + 32 * 200)
    assert watch.parts["other"] >= 4 * len(stray)


def test_what_backward_has_used_no_longer_counts() -> None:
    """The peak is of one pass, however many follow each other."""
    model, saved = nn.Linear(50, 50), SavedTensors()
    peaks = []
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        for _ in range(3):
            model(torch.randn(8, 50)).square().sum().backward()
            peaks.append(saved.peak)
    assert peaks[0] == peaks[-1] > 0


class Slow(Fake):
    """Sleeps in every step."""

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        time.sleep(0.02)
        return super().train_step(microbatches, step)


def test_the_stopwatch_changes_nothing(tmp_path: Path) -> None:
    """Every call reaches the strategy; what is timed begins after the warm-up and is written at the end."""
    inner = Slow()
    strategy = Measured(inner=inner, folder=str(tmp_path))
    strategy.setup(None, World())  # type: ignore[arg-type]  # the fake looks at neither
    results = [strategy.train_step([], step) for step in range(5)]
    assert strategy.shard == inner.shard
    assert strategy.reduce({"a": torch.ones(2)})["a"].tolist() == [1.0, 1.0]
    assert strategy.run(lambda: 7) == 7
    strategy.close()
    strategy.close()
    assert [result.loss.item() for result in results] == [1.0] * 5
    assert [call for call in inner.calls if call.startswith("train_step")] == [
        f"train_step {n}" for n in range(5)
    ]
    numbers = json.loads((tmp_path / "measured-0.json").read_text())
    assert len(numbers["walls"]) == len(numbers["busy"]) == 5 - WARM_UP
    assert all(wall >= 0.02 for wall in numbers["walls"])
    assert sum(numbers["busy"]) < sum(numbers["walls"])
    assert numbers["memory"] == {}


def test_a_strategy_that_fails_to_set_up_is_closed_without_numbers(tmp_path: Path) -> None:
    """No rank, no file."""

    class Broken(Fake):
        def setup(self, job: Job, world: World) -> None:
            raise RuntimeError("no")

    strategy = Measured(inner=Broken(), folder=str(tmp_path))
    with pytest.raises(RuntimeError, match="no"):
        strategy.setup(None, World())  # type: ignore[arg-type]
    strategy.close()
    assert list(tmp_path.iterdir()) == []


@lru_cache
def config(strategy: str = "single") -> RunConfig:
    return Common(overrides=["experiment=tiny"], config_dirs=[], steps=9).compose(strategy, world_size=1)


def test_any_strategy_is_measured_from_its_configuration(tmp_path: Path) -> None:
    """The strategy's own section is built within the stopwatch, arguments included."""
    strategy = build(measured(config("ddp"), tmp_path).strategy, key="strategy", plugins=())
    assert (type(strategy).__name__, type(strategy.inner).__name__) == ("Measured", "DDP")
    assert strategy.inner.bucket_mb == config("ddp").strategy["bucket_mb"]


@pytest.mark.slow
def test_one_process_strategies_run_on_one() -> None:
    """A strategy for one process is compared too; others get the number that was asked for."""
    common = Common(overrides=["experiment=tiny"], config_dirs=[], steps=9)
    assert [fitting(common, name, 2, 4).world_size for name in ("single", "ddp")] == [1, 2]


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """There must be something left to time."""
    assert main(["compare", "experiment=tiny", "steps=2"]) == 2
    assert "steps=2: the first 2 are not timed" in capsys.readouterr().err


def sample(seconds: Sequence[float], *, memory: Mapping[str, int] | None = None) -> Sample:
    return Sample(
        seconds=seconds,
        waiting=0.25,
        sent=1e6,
        memory=dict.fromkeys(PARTS, 10) if memory is None else memory,
        peak=5 * 10**8,
        loss=0.5,
        loss_curve=[1.0, 0.5],
    )


def cell(strategy: str) -> Cell:
    return Cell(strategy=strategy, world_size=2, microbatch_size=4, config=config())


def entries() -> list[Entry]:
    small = sample([0.02] * 3, memory=dict.fromkeys(PARTS, 5))
    return [
        Entry(cell=cell("fast"), samples=[sample([0.01, 0.01]), sample([0.01, 0.05])]),
        Entry(cell=cell("<b>small"), samples=[small]),
        Entry(cell=cell("broken"), samples=[], failure="it <i>failed</i>"),
    ]


def test_numbers_are_medians_over_all_rounds() -> None:
    """One slow step in a busy moment does not decide."""
    fast = entries()[0]
    assert fast.median == 0.01
    assert fast.spread == pytest.approx((0.01, 0.02))
    assert fast.examples_per_second == pytest.approx(1600)
    assert (fast.tensors, fast.sent, fast.waiting) == (50, 1e6, 0.25)


def test_advice_names_the_fastest_and_the_smallest() -> None:
    """And what choosing the smallest costs."""
    assert advice(entries()) == (
        "fastest here: fast (10.0 ms a step); "
        "least memory: <b>small (50% less in tensors per rank, 2 x the time)"
    )
    assert "none takes less memory" in advice(entries()[:1])
    assert advice(entries()[2:]) == "none of them ran"
    blind = replace(entries()[0], samples=[sample([0.01], memory={})])
    assert advice([blind]) == "fastest here: fast (10.0 ms a step)"


def test_rounds_take_turns_and_a_failure_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a, b, c, a, c; the fastest first, failures last with their reason."""
    ran: list[str] = []

    def fake_job(config: RunConfig, run_dir: Path, *, server: object) -> None:
        ran.append(run_dir.name)
        if run_dir.name.startswith("bad"):
            raise LaunchError("it failed")

    times = {"slow": 0.2, "good": 0.1}
    monkeypatch.setattr("distrib.proof.compare.run_job", fake_job)
    monkeypatch.setattr(
        "distrib.proof.compare.read_sample", lambda run_dir: sample([times[run_dir.name.partition("-")[0]]])
    )
    cells = [cell("slow"), cell("bad"), cell("good")]
    found = Comparison(cells=cells, repeats=2, root=tmp_path, server=None, say=lambda text: None).run()
    assert ran == ["slow-2-4-1", "bad-2-4-1", "good-2-4-1", "slow-2-4-2", "good-2-4-2"]
    assert [(entry.cell.strategy, len(entry.samples)) for entry in found] == [
        ("good", 2),
        ("slow", 2),
        ("bad", 0),
    ]
    assert found[-1].failure == "it failed"


def test_tables_fit_a_screen_and_name_every_strategy() -> None:
    """100 columns are enough, and no number is cut."""
    screen = Console(width=100, file=io.StringIO())
    screen.print(time_table(entries()))
    screen.print(memory_table(entries()))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for words in ("fast", "<b>small", "broken", "failed", "10.0 ms", "25%", "1 MB", "500 MB"):
        assert words in text, words


def test_the_page_draws_time_and_memory_and_escapes(tmp_path: Path) -> None:
    """Bars for every strategy that ran, the reason of the one that did not, and no text as markup."""
    text = write_page(tmp_path, entries()).read_text()
    assert text.count('class="bar"') == 4
    assert text.count("<svg") == 1
    assert "&lt;b&gt;small" in text
    assert "it &lt;i&gt;failed" in text
    assert not any(word in text for word in ("<b>small", "<i>failed", "<script", "https://"))
    record = json.loads(json.dumps(as_json(entries())))
    assert [line["failure"] for line in record["strategies"]] == ["", "", "it <i>failed</i>"]
