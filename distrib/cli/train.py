"""``distrib train``: compose, make the run directory, start the processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.cli.groups import add_config_dir

if TYPE_CHECKING:
    from distrib.config import RunConfig
    from distrib.launchers.forkserver import ForkServer
    from distrib.world import World

HELP = "Train a model: one run, or with -m one run per combination of values."


def epilog() -> str:
    """The long part of ``--help``."""
    from distrib.cli.reference import settings_help

    return settings_help()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings as words, everything else as flags."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings and group choices, in Hydra's syntax"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, the derived accumulation, the commands, and the launcher's "
        "script in launch/ with the values filled in; make nothing",
    )
    parser.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help="as --dry-run, and write that script to FILE, which must not exist yet",
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="train once per combination of the values given as a,b,c or range(1,4); ends with a table",
    )
    add_config_dir(parser)


def run(args: argparse.Namespace) -> int:
    """The exit code of the run, or 1 where a trial of a sweep did not end well."""
    from distrib.world import World

    world = World.from_env()
    if args.dry_run or args.script:
        return _show(args)
    if world.size > 1 or world.elastic:
        return _join(args, world)
    if args.multirun:
        from distrib.cli.sweep import sweep

        return sweep(args.overrides, config_dirs=args.config_dir)
    from distrib.cli.launching import early_server

    with early_server() as server:
        return _start(args, server)


def _start(args: argparse.Namespace, server: ForkServer | None) -> int:
    """Processes of our own."""
    from distrib.cli.compose import compose
    from distrib.cli.launching import launch
    from distrib.cli.rundir import make_run_dir

    config = compose(args.overrides, config_dirs=args.config_dir)
    announce(config)
    run_dir = make_run_dir(config)
    print(f"run directory   {run_dir}", flush=True)
    return launch(config, run_dir, server=server)


def _join(args: argparse.Namespace, world: World) -> int:
    """One rank of a job that somebody else has started."""
    from distrib.cli.compose import compose
    from distrib.cli.joining import join, join_sweep

    if args.multirun:
        return join_sweep(args.overrides, config_dirs=args.config_dir, world=world)
    return join(compose(args.overrides, config_dirs=args.config_dir, world_size=world.size), world)


def announce(config: RunConfig) -> None:
    """Says what a resumed run does differently, before its old configuration is replaced."""
    if config.resume is None:
        return
    from distrib.cli.resume import changes, run_dir_of
    from distrib.config import load

    print(f"going on with   {config.resume}")
    for key, (before, after) in changes(load(run_dir_of(config.resume)), config).items():
        print(f"changed         {key}: {before} -> {after} (this changes the result)")


def _show(args: argparse.Namespace) -> int:
    """``--dry-run``: everything that would happen, and nothing happens."""
    from distrib.cli.compose import compose
    from distrib.cli.launching import describe
    from distrib.cli.rundir import RUNS

    if args.multirun:
        from distrib.cli.sweep import show

        show(args.overrides, config_dirs=args.config_dir)
        return 0
    config = compose(args.overrides, config_dirs=args.config_dir)
    run_dir = Path(config.run_dir) if config.run_dir else RUNS / config.name / "<time>"
    for line in describe(config, run_dir):
        print(line)
    _show_script(config, args)
    return 0


def _show_script(config: RunConfig, args: argparse.Namespace) -> None:
    from distrib.cli.launch_script import filled, write

    if args.script:
        write(config, args.overrides, args.script)
        print(f"\nscript          {args.script}")
    elif script := filled(config, args.overrides):
        print(f"\nas a script (--script FILE writes it):\n\n{script}")
