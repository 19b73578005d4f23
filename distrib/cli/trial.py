"""One trial of a sweep as a process of its own: ``python -m distrib.cli.trial <run directory>``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distrib.errors import DistribError
from distrib.signals import follow_launcher
from distrib.sweeps.results import INTERRUPTED


def command(run_dir: Path) -> list[str]:
    """What starts it."""
    return [sys.executable, "-m", "distrib.cli.trial", str(run_dir)]


def main(argv: Sequence[str]) -> int:
    """Trains what ``config.yaml`` in the directory says, through its launcher; returns the exit code."""
    from distrib.cli.launching import early_server, launch
    from distrib.config import load

    follow_launcher()
    run_dir = Path(argv[0])
    try:
        with early_server() as server:
            return launch(load(run_dir), run_dir, server=server)
    except DistribError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
