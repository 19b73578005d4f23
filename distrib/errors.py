"""Everything distrib raises on purpose.

DistribError            anything distrib raises on purpose
├── ConfigError         the configuration asks for something that cannot run
├── MissingDependencyError   an optional package is not installed
├── DataError           a file, row or label that cannot be used
├── CheckpointError     a checkpoint that is damaged, absent or of another model
├── TrainingError       training had to stop: numbers that are not finite
└── LaunchError         processes that did not start, meet or stay alive
    └── PeerLostError   this one only because another is gone
"""

from __future__ import annotations


class DistribError(Exception):
    """Anything distrib raises on purpose; its text is meant for the user as it stands."""

    exit_code = 1


class ConfigError(DistribError):
    """The configuration asks for something that cannot run.

    Args:
        key: the dotted key, as the user would type it.
        value: what stands there now.
        remedy: what would work instead.
    """

    exit_code = 2

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key}={value}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy


class MissingDependencyError(DistribError):
    """An optional package is not installed; names the extra that brings it, or another remedy."""

    exit_code = 2

    def __init__(self, package: str, *, extra: str, needed_for: str, remedy: str | None = None) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed: "
            + (remedy or f"pip install 'distrib[{extra}]'")
        )
        self.package, self.extra = package, extra


class DataError(DistribError):
    """A file, row or label that cannot be used; names the file and, where there is one, the line."""

    exit_code = 2


class CheckpointError(DistribError):
    """A checkpoint that is damaged, absent or of another model; names the file."""


class TrainingError(DistribError):
    """Training had to stop: loss or gradient kept being NaN or infinite."""


class LaunchError(DistribError):
    """Processes did not start, did not meet in time, or one of them died."""


class PeerLostError(LaunchError):
    """This process cannot go on because another one is gone, which will have said why."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h; a launcher looks for another rank to blame
