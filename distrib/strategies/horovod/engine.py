"""Starting Horovod's runtime under any launcher, and stopping it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from distrib.environ import environment
from distrib.errors import ConfigError, LaunchError, MissingDependencyError
from distrib.rendezvous import agree
from distrib.world import World

LOOPBACK = "127.0.0.1"
FUSION = "HOROVOD_FUSION_THRESHOLD"

_fusion_thresholds: set[str | None] = set()
"""What this process has started Horovod with: started again with another, it dies of SIGSEGV."""


def check(world: World, *, adasum: bool, elastic: bool = False) -> None:
    """Raises `MissingDependencyError` or `ConfigError` for what this build of Horovod cannot do."""
    hvd = _horovod()
    if world.device.startswith("cuda") and not hvd.nccl_built():
        remedy = "this Horovod was built for CPUs; HOROVOD_GPU_OPERATIONS=NCCL make horovod builds it anew"
        raise ConfigError("strategy", "horovod", f"{remedy}, CUDA_VISIBLE_DEVICES= trains on the CPU")
    if adasum and controller(world) != "mpi":
        raise ConfigError(
            "strategy.op",
            "adasum",
            "needs Horovod's MPI controller: HOROVOD_WITH_MPI=1 make horovod, then start with "
            "mpirun or horovodrun --mpi; or use strategy.op=sum",
        )
    if elastic and not world.elastic:
        remedy = "needs Horovod's own launcher: horovodrun --min-np N --host-discovery-script FILE …"
        raise ConfigError("strategy.elastic", "true", f"{remedy}; or use strategy.elastic=false")


def controller(world: World) -> Literal["mpi", "horovodrun", "ours"]:
    """By what the ranks coordinate: MPI, horovodrun's rendezvous server, or one of our own."""
    started_by_us = "RANK" in os.environ  # ours and torchrun's variables outrank those around them
    if not started_by_us and "OMPI_COMM_WORLD_RANK" in os.environ and _horovod().mpi_built():
        return "mpi"
    if not started_by_us and {"HOROVOD_RANK", "HOROVOD_GLOO_RENDEZVOUS_PORT"} <= os.environ.keys():
        return "horovodrun"
    return "ours"


def start(world: World, *, options: Mapping[str, str]) -> None:
    """Starts the runtime; returns when it runs on every rank. Raises `LaunchError` where it does not.

    Raises `ConfigError` where this process has had it started with another fusion threshold.
    """
    hvd = _horovod()
    if _fusion_thresholds - {options.get(FUSION)}:
        value = f"{int(options[FUSION]) / 2**20:g}" if FUSION in options else "null"
        remedy = "Horovod cannot change it in a process that has run it already; start a new one"
        raise ConfigError("strategy.fusion_threshold_mb", value, remedy)
    _fusion_thresholds.add(options.get(FUSION))
    with _rendezvous(world) as variables, environment({**variables, **options}):
        _init(hvd, world)
        if (hvd.rank(), hvd.size()) != (world.rank, world.size):
            theirs = f"Horovod started as rank {hvd.rank()} of {hvd.size()}"
            raise LaunchError(f"{theirs}, the launcher says {world.rank} of {world.size}")
        # Rank 0 serves the others until the last of them is through.
        hvd.barrier()


def _init(hvd: Any, world: World) -> None:
    _check_name()
    try:
        hvd.init()
    except ValueError as error:
        raise LaunchError(
            f"Horovod did not start on rank {world.rank} of {world.size} ({error}); "
            "the other ranks' logs say why, or raise timeouts.collective if they are only slow"
        ) from error


def _check_name() -> None:
    """Horovod dies of SIGSEGV on a host whose own name means nothing to it. Raises `LaunchError` before."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise LaunchError(
            f"{name} does not know its own name, on which Horovod crashes: add it to /etc/hosts there"
        ) from error


def restart(world: World, *, options: Mapping[str, str]) -> World:
    """This rank's place among the ranks that horovodrun has now; returns when the runtime runs on all.

    A rank that is not among them is ended here, by Horovod, with SIGABRT.
    """
    hvd = _horovod()
    hvd.shutdown()
    with environment(options):
        _init(hvd, world)
    hvd.barrier()
    return replace(
        world,
        rank=hvd.rank(),
        size=hvd.size(),
        local_rank=hvd.local_rank(),
        local_size=hvd.local_size(),
        node=hvd.cross_rank(),
        num_nodes=hvd.cross_size(),
    )


def stop() -> None:
    """Stops the runtime; `start` may follow."""
    _horovod().shutdown()


def built_with() -> str:
    """What this build can use, as ``gloo, mpi``."""
    hvd = _horovod()
    parts = {"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    return ", ".join(name for name, built in parts.items() if built)


def _horovod() -> Any:
    try:
        import horovod.torch
    except ImportError as error:
        raise MissingDependencyError(
            "horovod",
            extra="horovod",
            needed_for="strategy=horovod",
            remedy=f"`make horovod` builds it against this torch ({error})",
        ) from error
    return horovod.torch


@contextmanager
def _rendezvous(world: World) -> Iterator[dict[str, str]]:
    """The variables by which the ranks find each other; what they tell of is open until the end."""
    kind = controller(world)
    if kind == "mpi":
        yield {"HOROVOD_CONTROLLER": "mpi"}
    elif kind == "horovodrun" or world.size == 1:
        yield {}
    elif world.rank == 0:
        with _server(world) as port:
            yield _variables(world, port=int(agree(world, "horovod", str(port))))
    else:
        yield _variables(world, port=int(agree(world, "horovod")))


@contextmanager
def _server(world: World) -> Iterator[int]:
    """Horovod's key-value server, reachable from the job's own network; yields its port.

    It accepts anyone, so it is bound to the address the ranks meet at and closed when they have met.
    """
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    try:
        server = RendezvousHTTPServer((_bound_to(world), 0), RendezvousHandler, 0)
    except OSError as error:
        remedy = "MASTER_ADDR has to be an address of rank 0's host"
        raise LaunchError(f"rank 0 cannot serve Horovod at {_address(world)} ({error}); {remedy}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="horovod")
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _variables(world: World, *, port: int) -> dict[str, str]:
    """What horovodrun would set."""
    return {
        "HOROVOD_RANK": str(world.rank),
        "HOROVOD_SIZE": str(world.size),
        "HOROVOD_LOCAL_RANK": str(world.local_rank),
        "HOROVOD_LOCAL_SIZE": str(world.local_size),
        # Only hierarchical operations talk across nodes, and gloo has none; a group of one is
        # right also where nodes run different numbers of processes.
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_HOSTNAME": f"node-{world.node}",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": _address(world),
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_IFACE": "lo" if _is_local(world) else os.environ.get("GLOO_SOCKET_IFNAME", ""),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }


def _is_local(world: World) -> bool:
    return world.local_size == world.size


def _address(world: World) -> str:
    """Where the other ranks reach rank 0."""
    return LOOPBACK if _is_local(world) else world.master_address or LOOPBACK


def _bound_to(world: World) -> str:
    """Rank 0's own address; all of them where its host's name means the loopback interface to itself."""
    address = socket.gethostbyname(_address(world))
    return "" if address.startswith("127.") and not _is_local(world) else address
