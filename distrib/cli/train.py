"""``distrib train``: compose, make the run directory, start the processes."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Train a model: one run, or with -m one run per combination of values."


def epilog() -> str:
    """The long part of ``--help``."""
    from distrib.cli.reference import settings_help

    return settings_help()
