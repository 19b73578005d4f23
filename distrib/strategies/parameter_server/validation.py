"""What the constructor's arguments must be, on how many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distrib.errors import ConfigError

if TYPE_CHECKING:
    from distrib.core import Job
    from distrib.strategies.parameter_server.strategy import ParameterServer


def check(strategy: ParameterServer, *, num_processes: int) -> None:
    """Raises `ConfigError` for what cannot run."""
    _check_backups(strategy)
    servers, workers = strategy.num_servers, strategy.num_workers(num_processes)
    if servers < 1:
        raise ConfigError("strategy.num_servers", servers, "at least 1 is needed")
    if workers < 1:
        least = num_processes - workers + 1
        remedy = (
            f"{num_processes} processes leave no worker; start at least {least} "
            f"(launcher.num_processes={least})"
        )
        raise ConfigError("strategy.num_servers", servers, remedy)
    if strategy.staleness < 0:
        raise ConfigError("strategy.staleness", strategy.staleness, "must not be negative; 0 is sync")
    if strategy.damping and strategy.mode != "async":
        raise ConfigError("strategy.damping", True, f"is of mode=async; strategy.mode={strategy.mode}")
    if strategy.average_every < 1:
        raise ConfigError("strategy.average_every", strategy.average_every, "must be 1 or more")
    _check_elastic(strategy)
    _check_compression(strategy)
    if strategy.balance == "measured" and strategy.mode not in ("sync", "stale"):
        remedy = (
            f"is of mode=sync and stale, where an update is of all workers; strategy.mode={strategy.mode}"
        )
        raise ConfigError("strategy.balance", strategy.balance, remedy)
    if strategy.min_workers is not None and not 1 <= strategy.min_workers <= workers:
        remedy = f"from 1 to the number of workers, which is {workers}"
        raise ConfigError("strategy.min_workers", strategy.min_workers, remedy)
    if not strategy.bucket_mb > 0:
        raise ConfigError("strategy.bucket_mb", strategy.bucket_mb, "must be above 0")
    if strategy.silent_after is not None and not strategy.silent_after > 0:
        raise ConfigError("strategy.silent_after", strategy.silent_after, "must be above 0, or null")


def check_job(job: Job) -> None:
    """Raises `ConfigError` for what the run asks for and no server can do."""
    if job.precision == "fp16":
        remedy = "strategy=parameter_server has no loss scaling; use precision=bf16"
        raise ConfigError("precision", job.precision, remedy)


def changes(strategy: ParameterServer) -> str | None:
    """What is done differently from one process on purpose; None: nothing."""
    exact = strategy.mode == "sync" or (strategy.mode == "stale" and strategy.staleness == 0)
    found = [] if exact else [f"workers wait less for each other (mode={strategy.mode})"]
    if strategy.compression != "none":
        found.append(f"gradients are sent as {strategy.compression}")
    return ", ".join(found) or None


def _check_elastic(strategy: ParameterServer) -> None:
    share = strategy.elastic
    if share is None:
        return
    if strategy.mode != "average":
        raise ConfigError("strategy.elastic", share, f"is of mode=average; strategy.mode={strategy.mode}")
    if not 0 < share < 1:
        raise ConfigError("strategy.elastic", share, "a share between 0 and 1, or null for the mean")


def _check_compression(strategy: ParameterServer) -> None:
    if strategy.compression != "none" and strategy.mode == "average":
        remedy = "is of gradients, and mode=average sends parameters; use compression=none"
        raise ConfigError("strategy.compression", strategy.compression, remedy)
    if not 0 < strategy.topk_share <= 1:
        raise ConfigError("strategy.topk_share", strategy.topk_share, "a share above 0, and at most 1")


def _check_backups(strategy: ParameterServer) -> None:
    backups = strategy.server_backups
    if backups not in (0, 1):
        raise ConfigError("strategy.server_backups", backups, "0 or 1: every server has one, or none")
