"""Seconds and bytes until the same held-out loss, on hosts joined by a slow link.

Every method goes on from the same checkpoint of one small language model, on the same global batches, from a
high learning rate to none; seeds and methods take turns. That is how DiLoCo is used (Douillard et al. 2023,
arXiv:2311.08105, section 3.1: after 24,000 steps of plain training), and the batch is as large as one step
can use: where a replica's half of it is mostly noise, every way to wait less loses.

The loss asked for is the lowest that every run has reached. Seconds are those of training; evaluations do
not count, but what they send does. A run that is in ``--folder`` already is not repeated, and all that are
there are reported, so that a method or a seed can be added.

Needs root: the hosts are network namespaces (`benchmarks.hosts`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from benchmarks.common import RESULTS, SMALL_LM, Numbers, free_port, rank_environment, records, write
from benchmarks.hosts import INTERFACE, Host, hosts
from distrib.cli.compose import compose
from distrib.config import RunConfig, dump

WORKERS = 2
DILOCO = ("strategy=diloco", "strategy.sync_every=50", "strategy.outer_momentum=0.5")
PARAMETER_SERVER = ("strategy=parameter_server", f"launcher.num_processes={WORKERS + 1}")
METHODS: dict[str, tuple[str, ...]] = {
    "ddp": ("strategy=ddp",),
    "ddp-bf16": ("strategy=ddp", "strategy.compression=bf16"),
    "ddp-powersgd": ("strategy=ddp", "strategy.compression=powersgd"),
    "diloco-50": DILOCO,
    "diloco-50-int8": (*DILOCO, "strategy.quantize=int8"),
    "local-sgd-50": ("strategy=local_sgd", "strategy.sync_every=50"),
    "ps-sync": PARAMETER_SERVER,
    "ps-stale-1": (*PARAMETER_SERVER, "strategy.mode=stale", "strategy.staleness=1"),
    "ps-async": (*PARAMETER_SERVER, "strategy.mode=async"),
    "ps-average-10": (*PARAMETER_SERVER, "strategy.mode=average", "strategy.average_every=10"),
}
"""By name what it adds to the command line; ``launcher.num_processes`` where it needs more than workers."""
TASK = (
    *SMALL_LM,
    "train.global_batch_size=128",
    "train.microbatch_size=64",
    "schedule=wsd",
    "schedule.warmup=0.05",
    "schedule.decay=0.5",
    "checkpoint.keep_best=false",
    "checkpoint.keep_last=1",
)
AXES = (("seconds", 1.0, "seconds of training", "linear"), ("bytes", 1e6, "MB sent by a worker", "log"))
"""Of the picture: by number its unit, words and scale."""
TIME_LIMIT = 3600.0
STEPS_BEFORE = 2
"""`Measured` counts the bytes of each step from the third on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--shared-steps", type=int, default=300, help="by ddp, before the methods part")
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--rate", default="100mbit", help="of each host's link, as tc writes it")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--name", default="time-to-loss", help="of the results file and the picture")
    given = parser.parse_args()
    length = [f"train.steps={given.steps}", f"train.eval_every={given.eval_every}"]
    configs = {name: compose([*TASK, *length, *words(name)]) for name in given.methods}
    start = compose([*TASK, *length, *words("ddp"), f"train.stop_after={given.shared_steps}"])
    most = max(processes(config) for config in configs.values())
    with hosts(most, rate=given.rate) as network:
        for seed in given.seeds:
            before = given.folder / f"start-{seed}"
            train(replace(start, seed=seed), before, network)
            for name, config in configs.items():
                folder = given.folder / f"{name}-{seed}"
                train(replace(config, seed=seed, resume=str(before)), folder, network)
                print(f"{name}, seed {seed}: {read(folder)[-1]}", flush=True)
    shared = {"steps": given.steps, "shared_steps": given.shared_steps}
    report(finished(given.folder), name=given.name, settings={"rate": given.rate, **shared})


def words(method: str) -> list[str]:
    """What a method adds to the command line."""
    return [f"launcher.num_processes={WORKERS}", *METHODS[method]]


def processes(config: RunConfig) -> int:
    return int(config.launcher["num_processes"])


def train(config: RunConfig, folder: Path, network: Sequence[Host]) -> None:
    """Runs ``config`` with one process on each host; leaves ``folder`` alone where it is finished."""
    if is_finished(folder):
        return
    if folder.exists():
        raise SystemExit(f"{folder} holds a run that did not end: remove it, so that it is made again")
    folder.mkdir(parents=True)
    measured = {
        "_target_": "distrib.proof.measured.Measured",
        "folder": str(folder),
        "inner": config.strategy,
    }
    dump(replace(config, strategy=measured), folder / "config.yaml")
    size, port = processes(config), free_port()
    ranks = [
        subprocess.Popen(
            host.command([sys.executable, "-m", "distrib.worker", str(folder)]),
            env=environment(rank, size=size, port=port, address=network[0].address),
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"stderr-{rank}.log").open("w"),
        )
        for rank, host in enumerate(network[:size])
    ]
    try:
        for rank, process in enumerate(ranks):
            if process.wait(timeout=TIME_LIMIT):
                raise RuntimeError((folder / f"stderr-{rank}.log").read_text()[-4000:])
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def environment(rank: int, *, size: int, port: int, address: str) -> dict[str, str]:
    """One process a host, which finds the others by their addresses."""
    apart = {
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(rank),
        "GROUP_WORLD_SIZE": str(size),
    }
    meeting = {"MASTER_ADDR": address, "GLOO_SOCKET_IFNAME": INTERFACE}
    environ = rank_environment(rank, size=size, port=port) | apart | meeting
    return environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}


def read(folder: Path) -> list[Numbers]:
    """One entry per evaluation: held-out loss, seconds trained and bytes that rank 0 had sent."""
    lines = records(folder)
    sent = json.loads((folder / "measured-0.json").read_text())["sent"]
    start = min(int(line["step"]) for line in lines if "lr" in line) - 1
    seconds, found = 0.0, []
    for line in lines:
        if "seconds" in line:
            seconds += line["seconds"]
        if "eval/loss" in line:
            steps = int(line["step"]) - start
            count = float(sum(sent[: steps - STEPS_BEFORE]))
            found.append({"loss": line["eval/loss"], "seconds": seconds, "bytes": count, "steps": steps})
    return found


def finished(folder: Path) -> dict[str, dict[int, Path]]:
    """The runs that have come to their end, by method and seed."""
    runs: dict[str, dict[int, Path]] = {}
    for name in METHODS:
        for path in sorted(folder.glob(f"{name}-[0-9]*")):
            if is_finished(path):
                runs.setdefault(name, {})[int(path.name.removeprefix(f"{name}-"))] = path
    return runs


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end; one that was told to stop by a signal has a summary too."""
    path = folder / "summary.json"
    return path.exists() and not str(json.loads(path.read_text())["stopped_by"]).startswith("SIG")


def report(runs: Mapping[str, Mapping[int, Path]], *, name: str, settings: Mapping[str, object]) -> None:
    """Writes the table's numbers and the picture."""
    curves = {method: {seed: read(path) for seed, path in paths.items()} for method, paths in runs.items()}
    target = max(min(point["loss"] for point in curve) for many in curves.values() for curve in many.values())
    numbers = {
        method: {seed: reached(curve, target) for seed, curve in many.items()}
        for method, many in curves.items()
    }
    for many in numbers.values():
        for seed in many.keys() & numbers.get("ddp", {}).keys():
            ours, theirs = many[seed], numbers["ddp"][seed]
            ours["loss_over_ddp"] = ours["final_loss"] / theirs["final_loss"] - 1
            ours["times_fewer_bytes"] = theirs["bytes_per_step"] / ours["bytes_per_step"]
            ours["seconds_of_ddp"] = ours["seconds"] / theirs["seconds"]
            ours["bytes_of_ddp"] = ours["bytes"] / theirs["bytes"]
    rounds = {method: list(many.values()) for method, many in numbers.items()}
    seeds = {method: list(paths) for method, paths in runs.items()}
    print(write(name, rounds, settings={**settings, "seeds": seeds, "target": target}))
    picture = RESULTS / f"{name}.svg"
    draw({method: list(many.values()) for method, many in curves.items()}, target=target, path=picture)
    print(picture)


def reached(curve: Sequence[Numbers], target: float) -> Numbers:
    """When a run was first at the loss asked for, between two evaluations by the straight line."""
    last = curve[-1]
    steps = last["steps"]
    at = next(number for number, point in enumerate(curve) if point["loss"] <= target)
    after, before = curve[at], curve[max(at - 1, 0)]
    fall = before["loss"] - after["loss"]
    share = (before["loss"] - target) / fall if fall > 0 else 1.0
    return {
        "seconds": before["seconds"] + share * (after["seconds"] - before["seconds"]),
        "bytes": before["bytes"] + share * (after["bytes"] - before["bytes"]),
        "final_loss": last["loss"],
        "seconds_per_step": last["seconds"] / steps,
        "bytes_per_step": last["bytes"] / steps,
    }


def draw(curves: Mapping[str, Sequence[Sequence[Numbers]]], *, target: float, path: Path) -> None:
    """A curve for every seed, in its method's colour, over seconds and over bytes."""
    # The same file from the same numbers, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": path.name, "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, (number, unit, label, scale) in zip(panels, AXES, strict=True):
        for colour, (name, many) in enumerate(curves.items()):
            for seed, curve in enumerate(many):
                x, y = [point[number] / unit for point in curve], [point["loss"] for point in curve]
                axes.plot(x, y, color=f"C{colour}", linewidth=1.2, label=None if seed else name)
        axes.axhline(target, color="grey", linestyle=":", linewidth=1.0)
        axes.set_xscale(scale)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
