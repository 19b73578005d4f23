"""Starting a whole job again from its last checkpoint when a rank or a host has died."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distrib.checkpoint import list_checkpoints
from distrib.errors import LaunchError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.forwarding import identity
from distrib.launchers.supervise import INTERRUPTED

USERS_ERROR = 2
"""The exit code of what only the user can mend (`ConfigError`): it would fail again."""


def with_restarts(attempt: Callable[[LaunchPlan], int], plan: LaunchPlan, *, max_restarts: int) -> int:
    """The exit code of the last attempt: at most ``max_restarts`` more than one.

    Every attempt is a job of its own, with a name, a token and a prefix at the store of its own: a rank
    that is started again must not read the last attempt's addresses (with stock torchrun and gloo, 0
    of 4 restarts came back). Nothing of an attempt runs any more when the next one begins.
    """
    restarts = 0
    while True:
        resume = str(plan.run_dir) if restarts and has_checkpoint(plan.run_dir) else None
        started = replace(plan, env={**plan.env, **identity(attempt=restarts, resume=resume)})
        try:
            code = attempt(started)
        except LaunchError as error:
            if restarts in (0, max_restarts):
                raise
            print(error, file=sys.stderr, flush=True)
            code = error.exit_code
        if code in (0, INTERRUPTED, USERS_ERROR) or restarts == max_restarts:
            return code
        restarts += 1
        where = "the last checkpoint" if has_checkpoint(plan.run_dir) else "the beginning: no checkpoint yet"
        print(f"notice: restart {restarts} of {max_restarts}, from {where}", file=sys.stderr, flush=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a checkpoint of this run was finished."""
    return bool(list_checkpoints(run_dir / "checkpoints"))
