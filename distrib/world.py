"""Who this process is among the others: read once from the environment, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """A torch device string: ``cpu`` or ``cuda:<local_rank>``."""
    master_address: str | None = None
    """Where the ranks meet; None where there is only one."""
    master_port: int | None = None
    collective_timeout: float = 600.0
    """Seconds that one collective operation may take before the rank gives up."""
    store: Any = field(default=None, repr=False, compare=False)
    """The key-value store the ranks met at (`distrib.rendezvous.meet`); None before that."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> World:
        """Reads the variables of torchrun, Horovod, Open MPI or SLURM; a world of one without any."""
        raise NotImplementedError
