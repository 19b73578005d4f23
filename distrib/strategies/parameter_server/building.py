"""Puts a worker or a server together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from distrib.core import Job
from distrib.errors import ConfigError
from distrib.parallel.replica import Replica
from distrib.strategies.parameter_server.agreement import Agreement
from distrib.strategies.parameter_server.averaging import Averaging
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.hall import Hall
from distrib.strategies.parameter_server.layout import Layout, in_forward_order, make_layout
from distrib.strategies.parameter_server.packing import Packing, packing_of
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Averaged, Bounded, Elastic, Rules, Unbounded
from distrib.strategies.parameter_server.server import Server
from distrib.strategies.parameter_server.updates import Alone, Centre, Mean, Summed, Update
from distrib.strategies.parameter_server.worker import Worker
from distrib.world import World

if TYPE_CHECKING:
    from distrib.strategies.parameter_server.strategy import ParameterServer

PATIENCE = 2.0
"""How many times longer a worker waits: its server must find out first who is silent."""


def worker(options: ParameterServer, job: Job, world: World) -> Worker:
    """The model on this rank, and a session with every server."""
    replica = Replica(job, device=world.device)
    parameters, users = in_forward_order(replica.module)
    doors = _doors(options, world, patience=PATIENCE)
    if world.rejoin:
        doors.knock()
    num_workers = world.size - options.num_servers
    built = _kind(options, job, num_workers=num_workers)(
        job,
        replica,
        _layout(options, parameters),
        parameters=parameters,
        sessions=[doors.open(rank, number=world.rejoin) for rank in range(num_workers, world.size)],
        number=world.rank,
        num_workers=num_workers,
        packing=_packing(options),
    )
    built.wait_in_forward(users)
    return built


def _kind(options: ParameterServer, job: Job, *, num_workers: int) -> Callable[..., Worker]:
    if options.mode != "average":
        return partial(Worker, own_norm=options.mode == "async")
    if job.num_microbatches < num_workers:
        remedy = f"leaves some of {num_workers} workers nothing to train on; lower train.microbatch_size"
        raise ConfigError("strategy.mode", options.mode, f"{job.num_microbatches} microbatches: {remedy}")
    return partial(Averaging, stride=options.average_every, elastic=options.elastic is not None)


def server(options: ParameterServer, job: Job, world: World) -> Server:
    """This rank's part of a fresh model, and a session with the other servers.

    The model is built whole to be cut, as on every rank; the rest of it is freed.
    """
    parameters, _ = in_forward_order(job.build_model())
    num_workers = world.size - options.num_servers
    part = Part(
        job,
        _layout(options, parameters),
        server=world.rank - num_workers,
        weights={name: p.data for name, p in parameters.items()},
    )
    hall = Hall(
        _rules(options),
        num_workers=num_workers,
        may_lose=partial(options.may_lose, num_processes=world.size),
        min_workers=options.min_workers or 1,
    )
    doors = _doors(options, world, patience=1.0)
    agreement = _agreement(doors, world, num_workers=num_workers)
    update = _update(options, part, hall, agreement)
    return Server(part, hall, doors=doors, update=update, packing=_packing(options))


def _update(options: ParameterServer, part: Part, hall: Hall, agreement: Agreement) -> Update:
    if options.mode == "async":
        return Alone(part, hall, damping=options.damping)
    if options.mode != "average":
        return Summed(part, hall, agreement)
    return (
        Mean(part, hall, agreement) if options.elastic is None else Centre(part, hall, share=options.elastic)
    )


def _agreement(doors: Doors, world: World, *, num_workers: int) -> Agreement:
    leads = world.rank == num_workers
    others = range(num_workers + 1, world.size) if leads else [num_workers]
    return Agreement([doors.open(rank) for rank in others], leads=leads, num_workers=num_workers)


def _doors(options: ParameterServer, world: World, *, patience: float) -> Doors:
    limit = patience * (options.silent_after or world.collective_timeout)
    return Doors(world, num_workers=world.size - options.num_servers, limit=limit)


def _packing(options: ParameterServer) -> Packing | None:
    return packing_of(options.compression, topk_share=options.topk_share)


def _layout(options: ParameterServer, parameters: dict[str, nn.Parameter]) -> Layout:
    size = next(iter(parameters.values())).element_size()
    return make_layout(
        {name: parameter.numel() for name, parameter in parameters.items()},
        num_servers=options.num_servers,
        bucket_numel=max(1, int(options.bucket_mb * 2**20 / size)),
    )


def _rules(options: ParameterServer) -> Rules:
    if options.mode == "async":
        return Unbounded()
    if options.mode == "average":
        kind = Averaged if options.elastic is None else Elastic
        return kind(stride=options.average_every)
    return Bounded(staleness=options.staleness if options.mode == "stale" else 0)
