"""``distrib report``: the page of a run, made again from its files."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Write the page with a run's curves, also of a run that was killed or is still going."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("run_dir", type=Path, help="a run directory, as runs/latest")


def run(args: argparse.Namespace) -> int:
    """Writes ``report.html`` and prints its path."""
    from distrib.tracking.report import write_report

    print(write_report(args.run_dir))
    return 0
