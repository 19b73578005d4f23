"""Programs of others that a launcher needs on this machine."""

from __future__ import annotations

import importlib.util
import shutil

from distrib.errors import LaunchError, MissingDependencyError


def require(program: str, *, remedy: str) -> None:
    """Raises `LaunchError` where ``program`` is not on the search path."""
    if shutil.which(program) is None:
        raise LaunchError(f"{program} is not installed on this machine: {remedy}")


def require_horovod() -> None:
    """Raises `MissingDependencyError` where Horovod is not installed for this interpreter."""
    if importlib.util.find_spec("horovod") is None:
        raise MissingDependencyError("horovod", extra="horovod", needed_for="launcher=horovodrun")
