"""Where the ranks of a job's parts stand: on nodes of one kind, started by one srun each.

Most jobs have one part. Ranks that only serve may have nodes of another kind: a second component of a
heterogeneous job. Each part is a step of its own, because srun, given both, names the tasks of each
from 0 when they die, and hands its standard input to whichever reads first (SLURM 22.05).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distrib.rank_variables import in_torchruns_names
from distrib.world import World


@dataclass(frozen=True, kw_only=True)
class Part:
    """What starts the ranks of one part."""

    srun: tuple[str, ...]
    first_rank: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    """More variables for these ranks."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Part:
        """What JSON made of the fields."""
        return cls(**{**values, "srun": tuple(values["srun"])})


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part's ranks and nodes stand among those of the whole job."""

    first_rank: int
    size: int
    first_node: int
    num_nodes: int

    @property
    def word(self) -> str:
        """One argument, which `read` understands."""
        return f"{self.first_rank},{self.size},{self.first_node},{self.num_nodes}"

    @classmethod
    def read(cls, word: str) -> Place:
        """The opposite of `word`."""
        first_rank, size, first_node, num_nodes = map(int, word.split(","))
        return cls(first_rank=first_rank, size=size, first_node=first_node, num_nodes=num_nodes)

    def variables(self, own: World) -> dict[str, str]:
        """This process's rank in the whole job, which is ``own`` in its part: in torchrun's names."""
        world = replace(
            own,
            rank=own.rank + self.first_rank,
            size=self.size,
            node=own.node + self.first_node,
            num_nodes=self.num_nodes,
            master_address=os.environ["MASTER_ADDR"],
            master_port=int(os.environ["MASTER_PORT"]),
        )
        return in_torchruns_names(world)
