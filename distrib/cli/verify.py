"""``distrib verify``: the strategies' trajectories on the user's model, against one process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.cli.groups import add_config_dir

if TYPE_CHECKING:
    from distrib.config import RunConfig
    from distrib.launchers.forkserver import ForkServer
    from distrib.proof.randomness import Randomness
    from distrib.proof.verify import Asked, Verified

HELP = "Prove on your model and data that every strategy gives the one-process run."

VERIFICATIONS = Path("verify")
"""Below the working directory."""

STEPS = 20
WORLD_SIZES = (1, 2, 4)

OWN = ("strategies", "world_sizes", "microbatch_sizes", "steps", "run_dir")


def epilog() -> str:
    """The long part of ``--help``."""
    return """\
words of this command, besides every setting of `distrib train`:
  strategies=ddp,fsdp         default: every installed one that is meant to equal one process
  world_sizes=1,2,4           numbers of processes
  microbatch_sizes=4,8        default: train.microbatch_size
  steps=20                    optimizer steps; the schedule spans them
  bounds.loss=1e-5            also bounds.grad_norm, bounds.weights, bounds.evaluation
  run_dir=DIR                 default: verify/<name>/<time>

examples:
  distrib verify experiment=tiny
  distrib verify experiment=news strategies=ddp,fsdp world_sizes=2,3 microbatch_sizes=4,8
  distrib verify experiment=news precision=fp64     bugs without rounding

exit code: 0 where all are the same, 1 where a bound is broken or a run failed, 2 for wrong settings"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings as words."""
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="as for `distrib train`, and below")
    add_config_dir(parser)


def run(args: argparse.Namespace) -> int:
    """0 where every strategy gives the one-process run."""
    from distrib.cli.launching import early_server

    with early_server() as server:
        return _verify(args, server)


def _verify(args: argparse.Namespace, server: ForkServer | None) -> int:
    from distrib.cli.cells import REFERENCE, Common, check_each_can_run, check_processes
    from distrib.proof import options
    from distrib.proof.bounds import NAMES

    own, overrides = options.split(args.overrides, own=[*OWN, *(f"bounds.{name}" for name in NAMES)])
    steps = options.count(own, "steps", default=STEPS)
    common = Common(overrides=overrides, config_dirs=args.config_dir, steps=steps)
    base = common.compose(REFERENCE, world_size=1)
    check_processes(base)
    asked = options.names(own, "strategies")
    sizes = options.counts(own, "microbatch_sizes", default=[base.train.microbatch_size])
    exact, changes = common.exact(common.strategies(asked))
    cells = common.cells(
        asked or exact,
        world_sizes=options.counts(own, "world_sizes", default=WORLD_SIZES),
        microbatch_sizes=sizes,
    )
    if asked:
        check_each_can_run(cells)
    given = {name: options.bound(own, f"bounds.{name}") for name in NAMES}
    references = {size: common.compose(REFERENCE, world_size=1, microbatch_size=size) for size in sizes}
    root = make_root(own.get("run_dir"), base.name)
    for name, reason in changes.items():
        print(f"{name:<16}changes the result on purpose: {reason}{'' if asked else '; left out'}")
    randomness = announce(base, root)
    from distrib.proof.verify import Asked

    plan = Asked(
        cells=cells,
        references=references if randomness.felt else {sizes[0]: references[sizes[0]]},
        bounds={name: value for name, value in given.items() if value is not None},
        named=asked,
    )
    return _carry_out(plan, root=root, server=server, randomness=randomness)


def make_root(run_dir: str | None, name: str, *, parent: Path = VERIFICATIONS) -> Path:
    """The new directory of a comparison. Raises `ConfigError` for one that holds something."""
    from distrib.cli.rundir import make_fresh
    from distrib.errors import ConfigError

    if run_dir is None:
        return make_fresh(parent / name)
    root = Path(run_dir).resolve()
    if root.exists() and any(root.iterdir()):
        raise ConfigError("run_dir", root, "a comparison needs a new directory")
    root.mkdir(parents=True, exist_ok=True)
    return root


def announce(base: RunConfig, root: Path) -> Randomness:
    """Says what is random in the model and how it is pinned, before anything runs."""
    from distrib.proof.randomness import find_randomness

    found = find_randomness(base, run_dir=root)
    for title, lines in (("random", found.lines()), ("pinned by", found.pins())):
        for label, line in zip(_then_blank(title), lines, strict=False):
            print(f"{label:<16}{line}")
    print(flush=True)
    return found


def _then_blank(title: str) -> Iterator[str]:
    yield title
    while True:
        yield ""


def _carry_out(plan: Asked, *, root: Path, server: ForkServer | None, randomness: Randomness) -> int:
    from distrib.proof.verify import Verification, as_json
    from distrib.proof.verify_page import write_page
    from distrib.tracking.files import write_json

    verified = Verification(
        asked=plan, root=root, server=server, say=lambda text: print(f"  {text}", flush=True)
    ).run()
    write_json(root / "verify.json", as_json(verified))
    page = write_page(root, verified, plan=plan, randomness=randomness)
    _show(verified, page)
    return 0 if verified.passed else 1


def _show(verified: Verified, page: Path) -> None:
    from rich.console import Console

    from distrib.cli.verify_table import remarks, verify_table

    console = Console()
    console.print()
    console.print(verify_table(verified))
    for text, style in remarks(verified):
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
    print(f"page            {page}")
