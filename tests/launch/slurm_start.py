"""``launcher=slurm`` as a process, to be signalled: ``slurm_start.py FOLDER SETTINGS MODULE [ARGUMENT ...]``.

SETTINGS is a JSON object: the launcher's keys, those of ``servers``, and ``expendable``, a list of ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distrib.errors import DistribError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.slurm import Servers, Slurm

if __name__ == "__main__":
    folder, text, *module = sys.argv[1:]
    settings = json.loads(text)
    plan = LaunchPlan(
        run_dir=Path(folder),
        argv=(sys.executable, "-m", *module),
        expendable=frozenset(settings.pop("expendable", [])),
    )
    settings["servers"] = Servers(**settings.pop("servers", {}))
    try:
        sys.exit(Slurm(**settings).launch(plan))
    except DistribError as error:
        sys.exit(f"distrib: {error}")
