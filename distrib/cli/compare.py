"""``distrib compare``: strategies side by side on the user's model and this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distrib.cli.cells import Common
    from distrib.launchers.forkserver import ForkServer
    from distrib.proof.compare import Entry
    from distrib.proof.jobs import Cell

HELP = "Run strategies side by side on your model and this machine: time, memory, network."

COMPARISONS = Path("compare")
"""Below the working directory."""

OWN = ("strategies", "num_processes", "repeats", "steps", "run_dir")
NUM_PROCESSES, REPEATS, STEPS = 2, 3, 12


def epilog() -> str:
    """The long part of ``--help``."""
    return """\
words of this command, besides every setting of `distrib train`:
  strategies=ddp,fsdp,single  default: every strategy that is installed
  num_processes=2             one that is for a single process runs on one
  repeats=3                   rounds; the strategies take turns
  steps=12                    optimizer steps a round; all but the first two are timed
  run_dir=DIR                 default: compare/<name>/<time>

columns:
  step          median of the slowest rank's time for an optimizer step, and where its middle half lies
  waiting       share of it in which the training thread slept: it waited for the other ranks
                (time in which it was ready and had no processor is not counted, on Linux)
                an engine that spins instead of sleeping shows no waiting
  sent          TCP payload per rank and step, as the kernel counts it for the rank's own sockets
  peak          largest resident memory of a rank, libraries included; then live tensors by what they are for

exit code: 0 unless none of them runs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings as words."""
    from distrib.cli.verify import add_arguments as add_the_same

    add_the_same(parser)


def run(args: argparse.Namespace) -> int:
    """0 unless none of them runs."""
    from distrib.cli.launching import early_server

    with early_server() as server:
        return _compare(args, server)


def _compare(args: argparse.Namespace, server: ForkServer | None) -> int:
    from distrib.cli.cells import REFERENCE, Common, check_processes
    from distrib.cli.verify import make_root
    from distrib.errors import ConfigError
    from distrib.proof import options
    from distrib.proof.compare import Comparison
    from distrib.proof.measured import WARM_UP

    own, overrides = options.split(args.overrides, own=OWN)
    steps = options.count(own, "steps", default=STEPS)
    if steps <= WARM_UP:
        raise ConfigError("steps", steps, f"the first {WARM_UP} are not timed; give more")
    common = Common(overrides=overrides, config_dirs=args.config_dir, steps=steps)
    base = common.compose(REFERENCE, world_size=1)
    check_processes(base)
    world_size = options.count(own, "num_processes", default=NUM_PROCESSES)
    names = common.strategies(options.names(own, "strategies"))
    cells = [fitting(common, name, world_size, base.train.microbatch_size) for name in names]
    repeats = options.count(own, "repeats", default=REPEATS)
    root = make_root(own.get("run_dir"), base.name, parent=COMPARISONS)
    comparison = Comparison(cells=cells, repeats=repeats, root=root, server=server, say=_say)
    return _show(comparison.run(), root)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def fitting(common: Common, strategy: str, world_size: int, microbatch_size: int) -> Cell:
    """The strategy on so many processes; on one where it refuses more but not one."""
    from distrib.config import RunConfig

    sizes = {"world_sizes": [world_size, 1], "microbatch_sizes": [microbatch_size]}
    wanted, alone = common.cells([strategy], **sizes)
    usable = isinstance(alone.config, RunConfig) and not isinstance(wanted.config, RunConfig)
    return alone if usable else wanted


def _show(entries: list[Entry], root: Path) -> int:
    from rich.console import Console

    from distrib.cli.compare_table import memory_table, time_table
    from distrib.proof.compare import advice, as_json
    from distrib.proof.compare_page import write_page
    from distrib.tracking.files import write_json

    write_json(root / "compare.json", as_json(entries))
    page = write_page(root, entries)
    console = Console()
    console.print()
    console.print(time_table(entries))
    console.print(memory_table(entries))
    for entry in entries:
        if entry.failure:
            text = f"{entry.cell.strategy} on {entry.cell.world_size}: {entry.failure}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(advice(entries), markup=False, highlight=False, soft_wrap=True)
    print(f"page            {page}")
    return 0 if any(entry.samples for entry in entries) else 1
