"""Writes ``benchmarks/README.md`` from ``benchmarks/results``: ``python -m benchmarks.table``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

NAMES = {
    "plain": "hand-written loop",
    "ours": "**distrib**",
    "fabric": "Lightning Fabric",
    "accelerate": "Accelerate",
    "trainer": "transformers Trainer",
    "torch-save": "torch.save",
    "safetensors": "safetensors",
}
MODELS = {"mlp": "a tiny perceptron", "minilm": "MiniLM (22.7 M parameters)"}

INTRODUCTION = """\
# Benchmarks

Made by `python -m benchmarks.table` from `results/*.json`, which hold every round, the command, versions and
hardware. `make bench` measures again. Variants run in turn, each in fresh processes; numbers are medians
over the rounds, with the lowest and highest in brackets. CPU time is that of one rank with all its threads,
and says more than wall time on a machine that does other things as well.
"""


def main() -> None:
    path = RESULTS.parent / "README.md"
    path.write_text("\n".join([INTRODUCTION, *overhead(), *startup(), *memory(), ""]))
    print(path)


def overhead() -> Iterator[str]:
    """A table per model and number of processes."""
    for path in sorted(RESULTS.glob("overhead-*.json"), key=lambda p: ("minilm" in p.name, p.name)):
        result = load(path)
        settings = result["settings"]
        size = settings["num_processes"]
        engine = "one process" if size == 1 else f"{size} processes, DistributedDataParallel"
        yield f"## A step of {MODELS[settings['model']]}: {engine}\n"
        rows = []
        for name, summary in result["summary"].items():
            added = by_round(result, name, "cpu_us")
            rows.append(
                [
                    NAMES[name],
                    spread(summary["cpu_us"]),
                    "" if name == "plain" else f"{added:+,.0f}",
                    f"{summary['cpu_us']['median'] / result['summary']['plain']['cpu_us']['median']:.3f}",
                    spread(summary["wall_us"]),
                    f"{summary['peak_bytes']['median'] / 1e6:,.0f}",
                ]
            )
        header = ["", "CPU µs per step", "more than by hand", "ratio", "wall µs per step", "peak MB per rank"]
        yield table(header, rows)
        yield footnote(result)


def startup() -> Iterator[str]:
    """Command to first step, against the floor of the same number of processes."""
    if not (RESULTS / "startup.json").exists():
        return
    result = load(RESULTS / "startup.json")
    yield "## From the command to the first step\n"
    rows = []
    for name, summary in result["summary"].items():
        variant, _, size = name.rpartition("-")
        floor = result["summary"][f"floor-{size}"]
        rows.append(
            [
                "the least a script can do" if variant == "floor" else "**distrib train**",
                size,
                spread(summary["wall_s"], digits=2),
                f"{summary['wall_s']['median'] / floor['wall_s']['median']:.2f}",
                spread(summary["cpu_s"], digits=2),
                f"{summary['cpu_s']['median'] / floor['cpu_s']['median']:.2f}",
            ]
        )
    yield table(["", "processes", "wall s", "ratio", "CPU s", "ratio"], rows)
    yield footnote(result)


def memory() -> Iterator[str]:
    """What saving adds, in bytes and in units of the largest tensor."""
    if not (RESULTS / "checkpoint-memory.json").exists():
        return
    result = load(RESULTS / "checkpoint-memory.json")
    yield "## Memory added while a checkpoint of MiniLM and its AdamW state is written\n"
    rows = [
        [
            NAMES[name],
            spread({key: value / 1e6 for key, value in summary["added_bytes"].items()}, digits=2),
            f"{summary['added_bytes']['median'] / summary['largest_tensor_bytes']['median']:.3f}",
            f"{summary['written_bytes']['median'] / 1e6:,.0f}",
        ]
        for name, summary in result["summary"].items()
    ]
    yield table(["", "added MB", "in units of the largest tensor", "written MB"], rows)
    yield footnote(result)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def by_round(result: dict[str, Any], name: str, number: str) -> float:
    """The median over rounds of what ``name`` takes more than the hand-written loop in the same round."""
    pairs = zip(result["rounds"][name], result["rounds"]["plain"], strict=True)
    return statistics.median(ours[number] - plain[number] for ours, plain in pairs)


def spread(summary: dict[str, float], *, digits: int = 0) -> str:
    low, high = summary["lowest"], summary["highest"]
    return f"{summary['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def footnote(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "distrib")
    return f"{result['repeats']} rounds; {hardware['processor']}, {hardware['cores']} cores; {named}.\n"


if __name__ == "__main__":
    main()
