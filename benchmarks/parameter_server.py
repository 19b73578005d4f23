"""Seconds of a synchronous step over a shaped link, against what the link allows: 2 workers and 1 server.

Needs root: the hosts are network namespaces (`benchmarks.hosts`). With S bytes of weights, n workers, k
servers and links of B bytes per second no step is shorter than max(S/B, nS/(kB)) for the gradients and as
much again for the weights: the update is clipped by the norm of the whole gradient, so no weight leaves
before the last gradient has come. ``ddp`` on the two workers is the comparison: an all-reduce of two ranks
sends S bytes each way, at the same time. ``share`` is what the link takes of the measured time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.common import Numbers, free_port, rank_environment, write
from benchmarks.hosts import INTERFACE, Host, hosts

WARMUP, STEPS = 2, 5
WIDTHS = {100: 256, 1000: 512}
"""Of the model, by the link's Mbit/s: 14 and 54 MB, of which the link takes 4.6 and 1.7 s a step."""
NUM_PROCESSES = {"parameter_server": 3, "ddp": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", nargs="+", type=int, default=[100, 1000], choices=list(WIDTHS))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for mbit in arguments.mbit:
        runs: dict[str, list[Numbers]] = {name: [] for name in NUM_PROCESSES}
        for turn in range(arguments.repeats):
            for name in NUM_PROCESSES:
                with hosts(NUM_PROCESSES[name], rate=f"{mbit}mbit") as network:
                    runs[name].append(measure(name, network, mbit=mbit))
                print(f"[{turn + 1}/{arguments.repeats}] {mbit} Mbit/s {name}: {runs[name][-1]}", flush=True)
        print(write(f"parameter-server-{mbit}mbit", runs, settings={"mbit": mbit, "width": WIDTHS[mbit]}))


def measure(name: str, network: Sequence[Host], *, mbit: int) -> Numbers:
    """Runs one job over the hosts; rank 0's numbers."""
    port, size = free_port(), len(network)
    arguments = ["-m", "benchmarks.parameter_server", "--worker", name, str(mbit)]
    processes = [
        subprocess.Popen(
            host.command([sys.executable, *arguments]),
            env={
                **rank_environment(rank, size=size, port=port),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "GROUP_RANK": str(rank),
                "GROUP_WORLD_SIZE": str(size),
                "MASTER_ADDR": network[0].address,
                "GLOO_SOCKET_IFNAME": INTERFACE,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(network)
    ]
    try:
        out, _ = processes[0].communicate(timeout=600)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    numbers: Numbers = json.loads(out.strip().splitlines()[-1])
    return numbers


def worker(name: str, *, mbit: int) -> Numbers | None:
    """This rank's part: seconds of a step, and the share of them that the link alone would take."""
    import torch

    from benchmarks.engines import Case, batch, build_model, job, strategy_of, world_of_this_rank

    torch.set_num_threads(1)
    world, width = world_of_this_rank(), WIDTHS[mbit]
    servers = 1 if name == "parameter_server" else 0
    count = world.size - servers
    recipes = job(size=count, precision="fp32", width=width)
    model_bytes = 4 * sum(parameter.numel() for parameter in build_model(width).parameters())

    with strategy_of(Case(strategy=name), world, job=recipes) as strategy:

        def steps() -> Numbers:
            seconds = []
            for step in range(WARMUP + STEPS):
                began = time.perf_counter()
                strategy.train_step([batch(index=world.rank, size=count)], step)
                strategy.eval_step(batch(index=world.rank, size=count))  # the weights have come
                seconds.append(time.perf_counter() - began)
            strategy.reduce({"done": torch.ones(())})
            per_step = sum(seconds[WARMUP:]) / STEPS
            link = 2 * max(1, count / max(servers, 1)) if servers else 1
            return {"seconds": per_step, "share": link * model_bytes * 8 / (mbit * 1e6) / per_step}

        return strategy.run(steps)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2], mbit=int(sys.argv[3]))), flush=True)
    else:
        main()
