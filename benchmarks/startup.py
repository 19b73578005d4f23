"""From the command to the first optimizer step: ``distrib train`` against the least a script can do.

Wall time, and CPU time of the command and all its processes, until the first step is on record. The
data is encoded before, as it is in every run but the first. All train the two-layer BERT of
``experiment=tiny``. The floor's ranks are started by nothing but ``Popen``; torchrun and ``accelerate
launch`` start the same ranks in their way, which on CPUs takes accelerate an mpirun: without, it starts one.
It binds each rank to a socket, which mpirun refuses for more ranks than cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from benchmarks.common import TIME_LIMIT, Numbers, Variant, free_port, interleave, rank_environment, write

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
"""In a container everybody is root, and mpirun refuses root by default."""
SIZES = (1, 2, 4)
POLL_SECONDS = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    watch = ["-m", "benchmarks.startup", "--watch"]
    variants = [
        Variant(name=f"{name}-{size}", arguments=[*watch, name, str(size)])
        for size in SIZES
        for name in names(size)
    ]
    with tempfile.TemporaryDirectory() as folder:
        # The first run encodes the data.
        subprocess.run(train_command(1, Path(folder)), check=True, stdout=subprocess.DEVNULL)
    runs = interleave(variants, repeats=arguments.repeats)
    print(write("startup", runs, settings={"experiment": "tiny", "num_processes": list(SIZES)}))


def names(size: int) -> list[str]:
    """The ways of starting ``size`` ranks."""
    cores = os.cpu_count() or 1
    return ["floor", "ours", *["torchrun"] * (size > 1), *["accelerate"] * (1 < size <= cores)]


def train_command(size: int, folder: Path) -> list[str]:
    strategy = "ddp" if size > 1 else "single"
    settings = ["experiment=tiny", f"strategy={strategy}", f"launcher.num_processes={size}", "train.steps=1"]
    return [sys.executable, "-m", "distrib", "train", *settings, f"run_dir={folder}"]


def watch(name: str, size: int, folder: Path) -> Numbers:
    """Starts the command and looks at the clocks when its first step is on record."""
    if name != "ours":
        command = [sys.executable, "-m", *starter(name, size, folder), str(folder)]
        return until(lambda: len(list(folder.glob("step-*"))) == size, command, errors=folder / "errors")
    record = folder / "run" / "metrics.jsonl"
    return until(
        lambda: record.exists() and "\n" in record.read_text(),
        train_command(size, folder / "run"),
        errors=folder / "errors",
    )


def starter(name: str, size: int, folder: Path) -> list[str]:
    """What starts the ranks of ``benchmarks.floor``, in ``python -m``'s words."""
    rank = ["-m", "benchmarks.floor", "rank"]
    hosts = folder / "hosts"
    hosts.write_text(f"localhost slots={size}\n")
    return {
        "floor": ["benchmarks.floor", str(size)],
        "torchrun": ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *rank],
        "accelerate": [
            *["accelerate.commands.launch", "--cpu", f"--num_processes={size}", "--num_machines=1"],
            *["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"],
            *[f"--mpirun_hostfile={hosts}", *rank],
        ],
    }[name]


def until(first_step: Callable[[], bool], command: Sequence[str], *, errors: Path) -> Numbers:
    """Wall and CPU seconds until ``first_step()``; then lets the command finish."""
    with errors.open("w") as file:
        environ = {**rank_environment(0, size=1, port=0), **AS_ROOT}
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=file)
    try:
        while not first_step():
            if process.poll() is not None or time.perf_counter() - began > TIME_LIMIT:
                raise RuntimeError(f"no first step from {command}:\n{errors.read_text()[-4000:]}")
            time.sleep(POLL_SECONDS)
        numbers = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_seconds(process.pid)}
        if process.wait(TIME_LIMIT) != 0:
            raise RuntimeError(f"{command} failed:\n{errors.read_text()[-4000:]}")
        return numbers
    finally:
        process.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and all below it, those that ended included."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:4]) for member in family)


if __name__ == "__main__":
    if "--watch" in sys.argv:
        print(json.dumps(watch(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
