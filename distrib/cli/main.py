"""The ``distrib`` command: finds the subcommand, runs it, turns `DistribError` into a message.

A subcommand is a module here with ``HELP`` (one sentence), ``add_arguments(parser)``, ``run(args) -> int``
and, where there is more to say, ``epilog() -> str``. Only the one that was asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from distrib.errors import DistribError
from distrib.targets import did_you_mean

COMMANDS = ("train", "evaluate", "predict", "export", "report", "verify", "compare", "doctor")

INTERRUPTED = 130
"""The exit code of a command ended by Ctrl-C: 128 + SIGINT, as in a shell."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        near = did_you_mean(argv[0], COMMANDS)
        return _fail(f"no such command: {argv[0]}; {near}there are: {', '.join(COMMANDS)}", exit_code=2)
    try:
        return _run(argv[0], argv[1:])
    except DistribError as error:
        return _fail(str(error), exit_code=error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `distrib ... | head`: the reader has seen enough
        # As Python's documentation of SIGPIPE advises, so that the flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(command: str, argv: Sequence[str]) -> int:
    module = _module(command)
    parser = argparse.ArgumentParser(
        prog=f"distrib {command}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if {"-h", "--help"} & set(argv):
        parser.epilog = getattr(module, "epilog", str)()
    module.add_arguments(parser)
    # Intermixed, so that flags may stand between key=value settings.
    try:
        code: int = module.run(parser.parse_intermixed_args(argv))
    finally:
        sys.stdout.flush()
    return code


def _module(command: str) -> Any:
    return importlib.import_module(f"distrib.cli.{command}")


def _overview() -> str:
    lines = [f"  {command:<10} {_module(command).HELP.strip().splitlines()[0]}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: distrib COMMAND ...",
            "",
            "Change the strategy, not the result: train one model on any number of processes.",
            "",
            *lines,
            "",
            "Start here:  distrib train experiment=news strategy=ddp launcher.num_processes=2",
            "More:        distrib COMMAND --help",
        ]
    )


def _fail(message: str, *, exit_code: int) -> int:
    print(f"distrib: {message}", file=sys.stderr)
    return exit_code
