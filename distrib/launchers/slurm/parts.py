"""Which parts a job has, and how much of SLURM each asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from distrib.launchers.slurm import options
from distrib.launchers.slurm.place import Part, Place
from distrib.launchers.slurm.script import srun


class Servers:
    """Nodes of their own for the ranks that serve, which are the last of a job. Null: the site's default.

    Args:
        num_nodes: 0: the ranks that serve are on the job's other nodes.
        num_processes: per node.
        partition: null: that of the others.
        constraint: features that these nodes must have.
        cpus_per_task: cores of each process.
        mem: memory per node, as ``64G``.
    """

    def __init__(
        self,
        *,
        num_nodes: int = 0,
        num_processes: int = 1,
        partition: str | None = None,
        constraint: str | None = None,
        cpus_per_task: int | None = None,
        mem: str | None = None,
    ) -> None:
        self.texts = {"partition": partition, "constraint": constraint, "mem": mem}
        options.check_texts("launcher.servers", **self.texts)
        options.check_numbers(0, "launcher.servers", num_nodes=num_nodes)
        options.check_numbers(1, "launcher.servers", num_processes=num_processes, cpus_per_task=cpus_per_task)
        self.num_nodes, self.num_processes, self.cpus_per_task = num_nodes, num_processes, cpus_per_task

    @property
    def size(self) -> int:
        """How many ranks."""
        return self.num_nodes * self.num_processes


class Nodes(Protocol):
    """As many nodes, with as many ranks on each."""

    num_nodes: int
    num_processes: int
    cpus_per_task: int | None


def size_options(nodes: Nodes) -> dict[str, str]:
    """The options of sbatch and srun that say how much."""
    cores = {} if nodes.cpus_per_task is None else {"cpus-per-task": str(nodes.cpus_per_task)}
    return {"nodes": str(nodes.num_nodes), "ntasks-per-node": str(nodes.num_processes), **cores}


def parts(
    kinds: Sequence[Nodes], argv: tuple[str, ...], *, run_dir: Path, heterogeneous: bool
) -> Iterator[Part]:
    """What starts ``argv`` on nodes of each kind, the ranks of the first kind first.

    Args:
        heterogeneous: the allocation has a component for each kind; False: it has one, with the nodes of
            all kinds in their order.
    """
    size = sum(kind.num_nodes * kind.num_processes for kind in kinds)
    num_nodes = sum(kind.num_nodes for kind in kinds)
    rank = node = 0
    for group, kind in enumerate(kinds):
        ranks = kind.num_nodes * kind.num_processes
        own = {**size_options(kind), "ntasks": str(ranks)}
        place = None
        if len(kinds) > 1:
            own |= {"het-group": str(group)} if heterogeneous else {"relative": str(node)}
            place = Place(first_rank=rank, size=size, first_node=node, num_nodes=num_nodes)
        yield Part(
            srun=srun(argv, run_dir=run_dir, options=own, place=place),
            first_rank=rank,
            env={} if kind.cpus_per_task is None else {"OMP_NUM_THREADS": str(kind.cpus_per_task)},
        )
        rank, node = rank + ranks, node + kind.num_nodes
