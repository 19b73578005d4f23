"""Runs whose workers are killed 100 times at random and come back, against unbroken ones of more seeds.

Three workers and a server, ``mode=sync`` with ``min_workers=1`` and ``balance=measured``, so that a step in
which a worker is lost is run again by the others, with its microbatches.
Workers other than rank 0 are killed at random moments, also while they are starting, and started again by the
launcher. What is asked: that each job ends, and with a held-out loss between the least and the largest of
the unbroken runs. ``missing`` is the share of all examples that were in no update, ``redone`` the number of
steps that were run again, ``over_own`` how far the loss is above that of the unbroken run of the same seed.

``lm`` is a small language model that learns to the end. ``tiny`` sorts news articles and has learnt them by
heart long before: its held-out loss says how sure of itself it is where it is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.common import SMALL_LM, Numbers, interrupted_by_sigterm, records, write

WORKERS = 3
TASKS = {
    "lm": (
        *SMALL_LM,
        "train.global_batch_size=24",
        "train.microbatch_size=4",
    ),
    "tiny": ("experiment=tiny",),
}
SETTINGS = (
    "strategy=parameter_server",
    "strategy.min_workers=1",
    "strategy.balance=measured",
    "strategy.silent_after=10",
    f"launcher.num_processes={WORKERS + 1}",
    "train.log_every=10",
    "checkpoint.keep_best=false",
)
TIME_LIMIT = 1500.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="lm")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=8, help="unbroken runs")
    parser.add_argument("--broken", type=int, default=4, help="runs with kills, of the first seeds")
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    runs: dict[str, list[Numbers]] = {"broken": [], "unbroken": []}
    with interrupted_by_sigterm(), tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for name in ["unbroken", "broken"] if seed < given.broken else ["unbroken"]:
                config = [*SETTINGS, *TASKS[given.task], f"seed={seed}"]
                kills = given.kills if name == "broken" else 0
                numbers = run(config, Path(folder) / f"{name}-{seed}", steps=given.steps, kills=kills)
                if name == "broken":
                    numbers["over_own"] = numbers["loss"] / runs["unbroken"][seed]["loss"] - 1
                runs[name].append(numbers)
                print(f"{name}, seed {seed}: {numbers}", flush=True)
    losses = [numbers["loss"] for numbers in runs["unbroken"]]
    inside = sum(min(losses) <= numbers["loss"] <= max(losses) for numbers in runs["broken"])
    settings = {"steps": given.steps, "kills": given.kills, "inside": inside}
    print(write(f"faults-{given.task}", runs, settings=settings))


def run(config: Sequence[str], run_dir: Path, *, steps: int, kills: int) -> Numbers:
    """The held-out loss at the end of one run, and how often a worker was killed in it."""
    length = [f"train.steps={steps}", f"run_dir={run_dir}"]
    rejoins = f"launcher.rejoins={10 * kills}"  # one may be killed again before it has joined
    began = time.monotonic()
    errors = run_dir.with_suffix(".errors")
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "distrib", "train", *config, *length, rejoins],
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        chance = random.Random(str(config))
        killed = kill_at_random(process, run_dir, kills=kills, steps=steps, chance=chance)
        code = process.wait(max(1.0, began + TIME_LIMIT - time.monotonic()))
    finally:
        process.kill()  # its ranks end with it
        process.wait()
    if code:
        logs = [f"{file.name}: {file.read_text()[-1000:]}" for file in (run_dir / "logs").glob("*.log")]
        raise SystemExit(f"the run ended with {code}:\n{errors.read_text()[-3000:]}\n" + "\n".join(logs))
    lines = records(run_dir)
    held_out = next(line for line in reversed(lines) if "eval/loss" in line)
    return {
        "loss": held_out["eval/loss"],
        "missing": missing(lines),
        "redone": sum(line.get("strategy/redone_steps", 0.0) for line in lines),
        "kills": float(killed),
        "seconds": time.monotonic() - began,
    }


def missing(lines: Sequence[Numbers]) -> float:
    """The share of the examples that were in no update, of which each line tells since the one before."""
    lacked = last = 0.0
    for line in lines:
        if "strategy/missing_targets" in line:
            lacked += line["strategy/missing_targets"] * (line["step"] - last)
            last = line["step"]
    return lacked / last


def kill_at_random(
    process: subprocess.Popen[bytes], run_dir: Path, *, kills: int, steps: int, chance: random.Random
) -> int:
    """Kills workers while the job runs, evenly over its steps as far as they are known; how many."""
    killed = 0
    while killed < kills and process.poll() is None:
        time.sleep(chance.uniform(0.0, 0.3))
        if step_of(run_dir) < max(1, steps * killed / (1.1 * kills)):
            continue
        victims = workers_of(process.pid, run_dir)
        if victims:
            chance.choice(victims).kill()
            killed += 1
    return killed


def step_of(run_dir: Path) -> int:
    """The last step that was logged."""
    return max((int(record.get("step", 0)) for record in records(run_dir)), default=0)


def workers_of(launcher: int, run_dir: Path) -> list[psutil.Process]:
    """The workers that may be killed: those that write to a log of rank 1 or above, but the server's."""
    logs = {f"{run_dir}/logs/rank-{rank}.log" for rank in range(1, WORKERS)}
    return [
        each for each in psutil.Process(launcher).children(recursive=True) if standard_error(each) in logs
    ]


def standard_error(process: psutil.Process) -> str:
    """The file it goes to; empty where the process is gone."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/2")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
