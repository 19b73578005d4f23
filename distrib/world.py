"""Who this process is among the others: read once from the environment, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distrib.errors import LaunchError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place in the job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    num_nodes: int = 1
    device: str = "cpu"
    """A torch device string: ``cpu`` or ``cuda:<local_rank>``; chosen by `on_device`."""
    master_address: str | None = None
    """Where the ranks meet; None where there is only one."""
    master_port: int | None = None
    store_is_served: bool = False
    """torchrun's agent serves the store at that address; otherwise rank 0 does."""
    port_fd: int | None = None
    """A socket bound to the port by the launcher, for rank 0 to listen on."""
    attempt: str = ""
    """Names this start of the job: a restarted rank must not read what an earlier start wrote."""
    rejoin: int = 0
    """How often this rank has been started again while the others went on; 0: with them, from the start."""
    elastic: bool = False
    """The launcher takes ranks away and adds others while the job runs: they do not all start together."""
    token: str = field(default="", repr=False)
    """The job's secret, which what ranks tell each other is signed with; empty: nobody gave it one."""
    collective_timeout: float = 600.0
    """Seconds that one collective operation may take."""
    check_collectives: bool = False
    """Compare what the ranks call before each collective operation runs."""
    log: Path | None = None
    """This rank's log file, for an engine's own words; None: standard error."""
    store: Any = field(default=None, repr=False, compare=False)
    """The key-value store the ranks met at (`distrib.rendezvous.meet`); None before that."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> World:
        """Reads the variables of torchrun, Horovod, Open MPI or SLURM; a world of one without any.

        Raises `LaunchError` naming the variables that are missing, not numbers, or contradict each other.
        """
        from distrib.rank_variables import read

        return read(os.environ if environ is None else environ)

    def on_device(self) -> World:
        """The same place with its accelerator. Imports torch only where the machine has one."""
        if not _may_have_gpu():
            return self
        import torch

        if not torch.cuda.is_available():
            return self
        if self.local_rank >= torch.cuda.device_count():
            raise LaunchError(
                f"local rank {self.local_rank} has no GPU: {torch.cuda.device_count()} are visible on this "
                "host. Start at most one process per GPU, or set CUDA_VISIBLE_DEVICES= to train on the CPU."
            )
        return replace(self, device=f"cuda:{self.local_rank}")


def _may_have_gpu() -> bool:
    """Whether there is any accelerator's device file: NVIDIA, AMD, or NVIDIA under WSL."""
    return any(Path(file).exists() for file in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
