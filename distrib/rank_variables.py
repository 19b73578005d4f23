"""The variables by which launchers tell a process its rank: one table, one reader (`read`)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.errors import LaunchError
from distrib.world import World

FALLBACK_PORT = 29500
"""torch's own default, for a launcher that tells its processes nothing in common."""


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What one launcher calls the facts of `World`."""

    launcher: str
    signs: tuple[str, ...]
    """Any of these says that this launcher started the process."""
    rank: str
    size: str
    local_rank: str
    local_size: str
    node: str | None = None
    num_nodes: str | None = None
    job: tuple[str, ...] = ()
    """Equal in all processes of a job, different between two jobs on one host."""
    attempt: tuple[str, ...] = ()
    """Different each time the launcher restarts the job."""
    elastic: str | None = None
    """Set to 1 where the launcher changes the ranks of a running job."""

    @property
    def names(self) -> frozenset[str]:
        """Every variable in this line of the table."""
        facts = (self.rank, self.size, self.local_rank, self.local_size, self.node, self.num_nodes)
        return frozenset(name for name in (*self.signs, *facts, *self.attempt, self.elastic) if name)


# In this order, because launchers nest: torchrun under srun, mpirun in a SLURM allocation.
# distrib's own launchers speak torchrun's names. SLURM is known by a variable that only srun sets: in
# a batch script SLURM_PROCID and SLURM_NTASKS are there too, but one process runs it.
LAUNCHERS = (
    Variables(
        launcher="torchrun",
        signs=("RANK", "WORLD_SIZE"),
        rank="RANK",
        size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
        node="GROUP_RANK",
        num_nodes="GROUP_WORLD_SIZE",
        job=("TORCHELASTIC_RUN_ID",),
        attempt=("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    ),
    Variables(
        launcher="Horovod",
        signs=("HOROVOD_RANK", "HOROVOD_SIZE"),
        rank="HOROVOD_RANK",
        size="HOROVOD_SIZE",
        local_rank="HOROVOD_LOCAL_RANK",
        local_size="HOROVOD_LOCAL_SIZE",
        node="HOROVOD_CROSS_RANK",
        num_nodes="HOROVOD_CROSS_SIZE",
        job=("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT"),
        elastic="HOROVOD_ELASTIC",
    ),
    Variables(
        launcher="Open MPI",
        signs=("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    Variables(
        launcher="SLURM",
        signs=("SLURM_STEP_NUM_TASKS",),
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_size="SLURM_STEP_TASKS_PER_NODE",
        node="SLURM_NODEID",
        num_nodes="SLURM_STEP_NUM_NODES",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        attempt=("SLURM_RESTART_COUNT",),
    ),
)

PORT_FD = "DISTRIB_PORT_FD"
"""Names the socket that rank 0 inherits, bound to MASTER_PORT already."""

REJOIN = "DISTRIB_REJOIN"
"""Counts how often a launcher has started this rank again in a job that goes on meanwhile."""

ATTEMPT = "DISTRIB_ATTEMPT"
"""Counts how often a launcher has started the whole job again."""

TOKEN, TOKEN_FILE = "DISTRIB_TOKEN", "DISTRIB_TOKEN_FILE"
"""The job's secret, or a file with it where a launcher would show its variables in a command."""

RESUME = "DISTRIB_RESUME"
"""The run directory that a job which was started again goes on from."""

GUEST = "DISTRIB_GUEST"
"""Says that another program starts this rank for a launcher of ours, and shows what it writes."""

OWN = (PORT_FD, REJOIN, ATTEMPT, TOKEN, TOKEN_FILE, RESUME, GUEST)

MEETING = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", *OWN)

RANK_VARIABLES = frozenset(MEETING).union(*(variables.names for variables in LAUNCHERS))
"""What a launcher must take out of the environment before it sets its own."""


def read(environ: Mapping[str, str]) -> World:
    """The world the first launcher in the table describes; a world of one where none left a sign."""
    for variables in LAUNCHERS:
        if any(name in environ for name in variables.signs):
            return _read(variables, environ)
    return World()


def in_torchruns_names(world: World) -> dict[str, str]:
    """The opposite of `read`, for the ranks that we start: a place and where the ranks meet."""
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "GROUP_RANK": str(world.node),
        "GROUP_WORLD_SIZE": str(world.num_nodes),
        "MASTER_ADDR": str(world.master_address),
        "MASTER_PORT": str(world.master_port),
    }


def _read(variables: Variables, environ: Mapping[str, str]) -> World:
    rank, size = _number(variables, variables.rank, environ), _number(variables, variables.size, environ)
    local_rank = _number(variables, variables.local_rank, environ)
    node = _optional(variables, variables.node, environ)
    local_size = _local_size(variables, environ, node=node or 0)
    # Open MPI has no variable for the node: by its default mapping, the ranks of a node are consecutive.
    node = rank // local_size if node is None and local_size else node or 0
    num_nodes = _optional(variables, variables.num_nodes, environ) or -(-size // max(local_size, 1))
    _check(variables, environ, rank < size and local_rank < local_size <= size and node < num_nodes)
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node=node,
        num_nodes=num_nodes,
        attempt="/".join(environ.get(name, "") for name in (*variables.attempt, ATTEMPT)),
        token=_token(environ),
        store_is_served=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        port_fd=int(environ[PORT_FD]) if PORT_FD in environ else None,
        rejoin=int(environ.get(REJOIN, "0")),
        elastic=environ.get(variables.elastic or "") == "1",
    )
    if size == 1 or world.elastic:
        return world
    return replace(
        world,
        master_address=environ.get("MASTER_ADDR") or _first_host(variables, environ, world),
        master_port=_port(variables, environ),
    )


def _token(environ: Mapping[str, str]) -> str:
    """The job's secret; empty where no launcher gave it one."""
    file = environ.get(TOKEN_FILE)
    if not file:
        return environ.get(TOKEN, "")
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{TOKEN_FILE}={file} cannot be read: {error}") from error


def _number(variables: Variables, name: str, environ: Mapping[str, str]) -> int:
    text = environ.get(name)
    if text is None:
        seen = ", ".join(f"{sign}={environ[sign]}" for sign in variables.signs if sign in environ)
        raise LaunchError(
            f"{seen} says that {variables.launcher} started this process, but {name} is not set"
        )
    if not text.isascii() or not text.isdigit():
        raise LaunchError(f"{name}={text} is not a number that {variables.launcher} would set")
    return int(text)


def _optional(variables: Variables, name: str | None, environ: Mapping[str, str]) -> int | None:
    return _number(variables, name, environ) if name is not None and name in environ else None


def _local_size(variables: Variables, environ: Mapping[str, str], *, node: int) -> int:
    """The number of processes on this node; SLURM writes all nodes' as ``2(x3),1``."""
    if variables.launcher != "SLURM":
        return _number(variables, variables.local_size, environ)
    text = environ.get(variables.local_size, "")
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, times in groups for _ in range(int(times or 1))]
    if node >= len(counts):
        raise LaunchError(f"{variables.local_size}={text} does not list node {node} ({variables.node})")
    return counts[node]


def _check(variables: Variables, environ: Mapping[str, str], consistent: bool) -> None:
    if not consistent:
        seen = ", ".join(f"{name}={environ[name]}" for name in sorted(variables.names) if name in environ)
        raise LaunchError(f"the variables of {variables.launcher} contradict each other: {seen}")


def _first_host(variables: Variables, environ: Mapping[str, str], world: World) -> str:
    """The host of rank 0, where the launcher says it or there is only one."""
    if world.local_size == world.size:
        return "127.0.0.1"
    if variables.launcher == "SLURM" and (first := first_of(environ.get("SLURM_STEP_NODELIST", ""))):
        return first
    raise LaunchError(
        f"{variables.launcher} started {world.size} processes on {world.num_nodes} hosts without saying "
        "where rank 0 is: set MASTER_ADDR to its host name or address, on all of them"
    )


def _port(variables: Variables, environ: Mapping[str, str]) -> int:
    """The port given, or one that follows from the job."""
    if environ.get("MASTER_PORT"):
        return _number(variables, "MASTER_PORT", environ)
    job = "/".join(environ[name] for name in variables.job if name in environ)
    return port_of(job) if job else FALLBACK_PORT


def port_of(job: str) -> int:
    """A port that follows from a job's name, below the range used for outgoing connections."""
    return 20000 + zlib.crc32(job.encode()) % 12000


def first_of(nodes: str) -> str:
    """The first host of SLURM's ``h[2-3,7],g1``; empty where there is none."""
    found = re.match(r"([^\[,]+)(?:\[([^],-]+)[^]]*\])?", nodes)
    return found[1] + (found[2] or "") if found else ""
