"""A launcher over ssh, to be signalled: ``start_ssh.py FOLDER SETTINGS-AS-JSON MODULE [ARGUMENT ...]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distrib.errors import DistribError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.ssh import SSH

if __name__ == "__main__":
    folder, settings, *module = sys.argv[1:]
    plan = LaunchPlan(run_dir=Path(folder), argv=(sys.executable, "-m", *module), start_timeout=60)
    try:
        code = SSH(**json.loads(settings)).launch(plan)
    except DistribError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    sys.exit(code)
