"""A launcher process, to be signalled: ``start.py FOLDER NUM_PROCESSES SERVER MODULE [ARGUMENT ...]``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from distrib.launchers.base import LaunchPlan
from distrib.launchers.forkserver import ForkServer
from distrib.launchers.local import Local

if __name__ == "__main__":
    folder, num_processes, preload, *module = sys.argv[1:]
    with ExitStack() as stack:
        names = tuple(name for name in preload.split(",") if name not in ("", "fork"))
        server = stack.enter_context(ForkServer(preload=names)) if preload else None
        expendable = frozenset(int(rank) for rank in os.environ.get("EXPENDABLE", ""))
        plan = LaunchPlan(
            run_dir=Path(folder),
            argv=(sys.executable, "-m", *module),
            expendable=expendable,
            imports=tuple(os.environ.get("IMPORTS", "").split()),
        )
        rejoins = int(os.environ.get("REJOINS", "0"))
        code = Local(num_processes=int(num_processes), threads=1, rejoins=rejoins).launch(plan, server=server)
    sys.exit(code)
