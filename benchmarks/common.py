"""Running variants in turn, in processes of their own, and writing down what came out.

Variants are interleaved (A B C, A B C, …), so that a machine that slows down for a while slows all
of them. Each run is a fresh process, or one per rank, that is given a scratch folder as its last argument
and whose last line on standard output is its numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distrib.signals import handling
from distrib.tracking.files import METRICS, read_metrics

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("distrib", "torch", "transformers", "accelerate", "lightning-fabric", "numpy")
TIME_LIMIT = 600.0
"""Seconds for one run of one variant."""
POLL_SECONDS = 0.05

SMALL_LM = (
    "experiment=lm",
    "task.max_length=64",
    "data.heldout_fraction=0.01",
    "model.hidden_size=64",
    "model.num_layers=2",
)
"""On the command line: a language model small enough to be trained many times."""

Numbers = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of doing the work that is measured."""

    name: str
    arguments: Sequence[str]
    """What follows ``python``."""
    num_processes: int = 1


def records(run_dir: Path) -> list[Numbers]:
    """What a run has measured, step by step; NaN where it had no number."""
    lines = read_metrics(run_dir / METRICS)
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def interrupted_by_sigterm() -> AbstractContextManager[None]:
    """SIGTERM in here is KeyboardInterrupt, so that who is told to end leaves nothing running."""
    return handling({signal.SIGTERM: signal.default_int_handler})


def run(variant: Variant) -> list[Numbers]:
    """Starts the variant's processes at once; the last line that each rank prints, parsed.

    Raises `RuntimeError` with the words of the first rank that fails, which the others would wait for.
    """
    port = free_port()
    with (
        interrupted_by_sigterm(),
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as words,
    ):
        ranks = [
            _start(variant, rank, port=port, folder=folder, words=Path(words))
            for rank in range(variant.num_processes)
        ]
        try:
            _wait(variant, ranks, words=Path(words))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        printed = [(Path(words) / f"{rank}.out").read_text() for rank in range(len(ranks))]
    return [json.loads(text.strip().splitlines()[-1]) for text in printed]


def _start(variant: Variant, rank: int, *, port: int, folder: str, words: Path) -> subprocess.Popen[bytes]:
    with (words / f"{rank}.out").open("wb") as out, (words / f"{rank}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, *variant.arguments, folder],
            env=rank_environment(rank, size=variant.num_processes, port=port),
            stdout=out,
            stderr=err,
        )


def _wait(variant: Variant, ranks: Sequence[subprocess.Popen[bytes]], *, words: Path) -> None:
    running, ends = dict(enumerate(ranks)), time.monotonic() + TIME_LIMIT
    while running:
        for rank, process in list(running.items()):
            late = time.monotonic() > ends
            code = process.poll()
            if code == 0:
                del running[rank]
            elif late or code is not None:
                how = f"ended with code {code}" if not late else f"did not end in {TIME_LIMIT:.0f} s"
                said = (words / f"{rank}.err").read_text()[-4000:]
                raise RuntimeError(f"{variant.name}, rank {rank} {how}:\n{said}")
        time.sleep(POLL_SECONDS)


def rank_environment(rank: int, *, size: int, port: int) -> dict[str, str]:
    """The caller's environment, with torchrun's variables where there are several ranks."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if size > 1:
        environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environ


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def interleave(variants: Sequence[Variant], *, repeats: int) -> dict[str, list[Numbers]]:
    """``repeats`` rounds over all variants; by variant one entry per round.

    Averaged over its ranks but those without numbers, which served the others.
    """
    runs: dict[str, list[Numbers]] = {variant.name: [] for variant in variants}
    for turn in range(repeats):
        for variant in variants:
            ranks = [numbers for numbers in run(variant) if numbers]
            runs[variant.name].append({name: statistics.fmean(r[name] for r in ranks) for name in ranks[0]})
            shown = ", ".join(f"{name} {value:.6g}" for name, value in runs[variant.name][-1].items())
            print(f"[{turn + 1}/{repeats}] {variant.name}: {shown}", flush=True)
    return runs


def measure_cases(
    program: str,
    description: str | None,
    *,
    cases: Sequence[str],
    default: Sequence[str] | None = None,
    processes: Sequence[int],
    repeats: int,
    settings: Mapping[str, Any] | None = None,
    begin: Callable[[], object] = lambda: None,
) -> None:
    """The command line of ``benchmarks.<program>``, whose ``--worker CASE`` is one rank of one case.

    Writes ``results/<program>-<N>.json`` for each number of processes.

    Args:
        default: the cases measured where none are named; None: all.
        settings: written beside the number of processes.
        begin: called once the command line is read.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--processes", nargs="+", type=int, default=list(processes))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(default or cases))
    given = parser.parse_args()
    begin()
    for size in given.processes:
        worker = ["-m", f"benchmarks.{program}", "--worker"]
        variants = [Variant(name=case, arguments=[*worker, case], num_processes=size) for case in given.cases]
        runs = interleave(variants, repeats=given.repeats)
        name = f"{program.replace('_', '-')}-{size}"
        print(write(name, runs, settings={"num_processes": size, **(settings or {})}))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One number of one variant over all rounds."""

    median: float
    lowest: float
    highest: float


def summarize(rounds: Sequence[Numbers]) -> dict[str, Summary]:
    """Median and spread of each number."""
    return {
        name: Summary(
            median=statistics.median(r[name] for r in rounds),
            lowest=min(r[name] for r in rounds),
            highest=max(r[name] for r in rounds),
        )
        for name in rounds[0]
    }


def write(name: str, runs: Mapping[str, Sequence[Numbers]], *, settings: Mapping[str, Any]) -> Path:
    """Writes ``results/<name>.json`` with all that is needed to judge the numbers and to repeat them."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    repeats = len(next(iter(runs.values())))
    content = {
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "settings": dict(settings),
        "repeats": repeats,
        "versions": versions(),
        "hardware": hardware(),
        "summary": {
            variant: {number: asdict(summary) for number, summary in summarize(rounds).items()}
            for variant, rounds in runs.items()
        },
        "rounds": {variant: list(rounds) for variant, rounds in runs.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "from the checkout" if package == "distrib" else "absent"
    return found


def hardware() -> dict[str, str | float]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30, 1),
    }
