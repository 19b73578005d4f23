"""Writes ``benchmarks/README.md`` from ``benchmarks/results``: ``python -m benchmarks.table``."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import RESULTS
from benchmarks.markdown import by_round, footnote, load, results, shown, spread, table
from benchmarks.waiting_tables import drills, killed, late, links, slow_link, uneven

NAMES = {
    "plain": "hand-written loop",
    "ours": "**distrib**",
    "fabric": "Lightning Fabric",
    "accelerate": "Accelerate",
    "trainer": "transformers Trainer",
    "one": "one process",
    "independent": "two processes that know nothing of each other",
    "torch-save": "torch.save",
    "safetensors": "safetensors",
    "ddp": "**distrib** `strategy=ddp`",
    "ddp-autocast": "**distrib** `strategy=ddp precision=bf16`",
    "ddp-bf16": "**distrib** `strategy=ddp strategy.compression=bf16`",
    "ddp-powersgd": "**distrib** `strategy=ddp strategy.compression=powersgd`",
    "fsdp": "**distrib** `strategy=fsdp`",
    "fsdp-keep": "**distrib** `strategy=fsdp strategy.reshard_after_forward=false`",
    "fsdp-autocast": "**distrib** `strategy=fsdp precision=bf16`",
    "fsdp-bf16": "**distrib** `strategy=fsdp strategy.param_dtype=bf16 precision=bf16`",
    "stock-fsdp": "torch `fully_shard`",
    "stock-fsdp-keep": "torch `fully_shard`, `reshard_after_forward=False`",
    "zero1": "**distrib** `strategy=zero1`",
    "zero1-bf16": "**distrib** `strategy=zero1 precision=bf16`",
    "zero2": "**distrib** `strategy=zero2`",
    "zero2-bf16": "**distrib** `strategy=zero2 precision=bf16`",
    "zero3": "**distrib** `strategy=zero3`",
    "zero3-lean": "**distrib** `strategy=zero3`, persistence threshold and reuse distance 0",
    "zero3-bf16": "**distrib** `strategy=zero3 precision=bf16`",
    "horovod": "**distrib** `strategy=horovod`",
}
STARTS = {
    "floor": "the least a script can do",
    "ours": "**distrib train**",
    "torchrun": "the same script under torchrun",
    "accelerate": "the same script under `accelerate launch`",
}
SOURCES = {"new": "new weights", "fp32": "from a file in fp32", "bf16": "from a file in bfloat16"}
ENGINES = {
    "ddp": "DistributedDataParallel",
    "fsdp": "`fully_shard`",
    "horovod": "Horovod",
    "zero1": "DeepSpeed ZeRO-1",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
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
    sections = (
        *(overhead, paired, scaling, startup, memory, states, building, traffic, held),
        *(links, slow_link, late, killed, uneven, drills),
    )
    path.write_text("\n".join([INTRODUCTION, *(part for section in sections for part in section()), ""]))
    print(path)


def overhead() -> Iterator[str]:
    """A table per model and number of processes."""
    for path in sorted(RESULTS.glob("overhead-*.json"), key=lambda p: ("minilm" in p.name, p.name)):
        result = load(path)
        settings = result["settings"]
        size = settings["num_processes"]
        engine = "one process" if size == 1 else f"{size} processes, {ENGINES[settings.get('engine', 'ddp')]}"
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


def paired() -> Iterator[str]:
    """What ours takes more than the loop by hand in the same process, a row for each engine."""
    for result in reversed(results("paired-*.json")):
        settings = result["settings"]
        ranks = f"{settings['num_processes']} processes"
        yield f"## The same in turns within one process: {MODELS[settings['model']]}, {ranks}\n"
        yield (
            f"CPU time of turns of {settings['turn']} steps by hand and by distrib on one engine; *more* is "
            f"the median over {settings['pairs']} pairs of turns.\n"
        )
        rows = [
            [
                ENGINES[name],
                f"{summary['plain_us']['median']:,.0f}",
                f"{summary['ours_us']['median']:,.0f}",
                spread(summary["added_us"]),
                f"{summary['added_us']['median'] / summary['plain_us']['median']:+.1%}",
            ]
            for name, summary in result["summary"].items()
        ]
        yield table(["", "by hand, µs per step", "distrib", "more", "of the step"], rows)
        yield footnote(result)


def scaling() -> Iterator[str]:
    """What a second process adds, against two independent ones."""
    for result in results("scaling-*.json"):
        yield f"## From one process to two: {MODELS[result['settings']['model']]}\n"
        rows = [
            [
                "hand-written loop with DistributedDataParallel" if name == "plain" else NAMES[name],
                spread({key: value / 1000 for key, value in summary["wall_us"].items()}, digits=1),
                f"{summary['speedup']['median']:.2f}",
                spread(summary["efficiency"], digits=3) if name != "one" else "",
            ]
            for name, summary in result["summary"].items()
        ]
        yield table(["", "wall ms per step", "times one process", "share of two independent"], rows)
        yield footnote(result)


def startup() -> Iterator[str]:
    """Command to first step, against the floor of the same number of processes."""
    for result in results("startup.json"):
        yield "## From the command to the first step\n"
        rows = []
        for name, summary in result["summary"].items():
            variant, _, size = name.rpartition("-")
            floor = result["summary"][f"floor-{size}"]
            rows.append(
                [
                    STARTS[variant],
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
    for result in results("checkpoint-memory.json"):
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


def states() -> Iterator[str]:
    """What saving and loading add on a rank, in units of the largest tensor."""
    for result in results("state-memory-*.json"):
        size = result["settings"]["num_processes"]
        yield f"## Memory added on each of {size} ranks by saving and loading\n"
        rows = []
        for name, summary in result["summary"].items():
            largest = summary["largest_tensor"]["median"]
            units = [f"{summary[what]['median'] / largest:.2f}" for what in ("saving", "loading")]
            rows.append([NAMES[name], *units])
        yield (
            "In units of the largest tensor, beyond what the rank held before saving or holds after loading "
            "anyway: weights of 13.6 M parameters and AdamW's state.\n"
        )
        yield table(["", "saving", "loading"], rows)
        yield footnote(result)


def building() -> Iterator[str]:
    """What building and splitting a model adds on a rank, in units of the model."""
    for result in results("building-memory-*.json"):
        size = result["settings"]["num_processes"]
        yield f"## Memory added on each of {size} ranks by building and splitting a model\n"
        yield (
            f"In units of the model, {result['settings']['model_bytes'] / 1e6:,.0f} MB in fp32, until the "
            "engine is set up. *held* is what is left then. *whole*: built whole on every rank before it is "
            "split.\n"
        )
        rows = []
        for name, summary in result["summary"].items():
            engine, source, *whole = name.split("-")
            label = [NAMES[engine], SOURCES[source] + (", whole" if whole else "")]
            rows.append([", ".join(label), *(spread(summary[what], digits=3) for what in ("peak", "held"))])
        yield table(["", "peak", "held"], rows)
        yield footnote(result)


def traffic() -> Iterator[str]:
    """What a step sends, against the least, for each number of processes."""
    for result in results("traffic-*.json"):
        yield f"## Bytes sent per step by {result['settings']['num_processes']} processes\n"
        yield (
            "In units of (N-1)/N of a 13.6 M parameter model in fp32, counted by the kernel, TCP's headers "
            "included. *least*: each part of weights or gradient sent once per gather, scatter or half of an "
            "all-reduce. distrib's fsdp is below it: the last block and what is outside the blocks are not "
            "gathered twice.\n"
        )
        rows = [
            [NAMES[name], f"{summary['units']['median']:.3f}", *shown(summary, "least", digits=0)]
            for name, summary in result["summary"].items()
        ]
        yield table(["", "units", "least"], rows)
        yield footnote(result)


def held() -> Iterator[str]:
    """What a rank holds after backward, against the formula, for each number of processes."""
    for result in results("memory-*.json"):
        yield f"## Bytes per parameter on each of {result['settings']['num_processes']} processes\n"
        rows = [
            [
                NAMES[name],
                f"{summary['live']['median']:.3f}",
                *shown(summary, "formula", digits=2),
                f"{summary['setup_peak']['median']:.2f}",
            ]
            for name, summary in result["summary"].items()
        ]
        yield table(["", "live tensors after backward", "formula", "peak while setting up"], rows)
        yield footnote(result)


if __name__ == "__main__":
    main()
