"""Puts a worker or a server together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from distrib.core import Job
from distrib.errors import ConfigError, LaunchError
from distrib.parallel.balance import Speeds
from distrib.parallel.replica import Replica
from distrib.strategies.parameter_server.agreement import SUCCESSOR_PATIENCE, Agreement, Following, Leading
from distrib.strategies.parameter_server.averaging import Averaging
from distrib.strategies.parameter_server.backup import Backup
from distrib.strategies.parameter_server.doors import Doors
from distrib.strategies.parameter_server.hall import Hall
from distrib.strategies.parameter_server.layout import Layout, in_forward_order, make_layout
from distrib.strategies.parameter_server.ledger import Ledger
from distrib.strategies.parameter_server.link import Link
from distrib.strategies.parameter_server.packing import Packing, packing_of
from distrib.strategies.parameter_server.part import Part
from distrib.strategies.parameter_server.rules import Averaged, Bounded, Elastic, Rules, Unbounded
from distrib.strategies.parameter_server.server import Server
from distrib.strategies.parameter_server.sharing import Sharing
from distrib.strategies.parameter_server.terms import NOBODY, Terms
from distrib.strategies.parameter_server.updates import Alone, Centre, Mean, Summed, Update
from distrib.strategies.parameter_server.worker import Worker
from distrib.world import World

if TYPE_CHECKING:
    from distrib.strategies.parameter_server.strategy import ParameterServer

PATIENCE = 2.0
"""How many times longer a worker waits: its server must find out first who is silent."""


def member(
    options: ParameterServer, job: Job, world: World
) -> tuple[Worker, None] | tuple[None, Server | Backup]:
    """This rank's part in the job."""
    if options.serves(world.rank, num_processes=world.size):
        return None, server(options, job, world)
    return worker(options, job, world), None


def worker(options: ParameterServer, job: Job, world: World) -> Worker:
    """The model on this rank, and a session with every server."""
    replica = Replica(job, device=world.device)
    parameters, users = in_forward_order(replica.module)
    doors = _doors(options, world, patience=PATIENCE)
    if world.rejoin:
        doors.knock()
    num_workers = options.num_workers(world.size)
    built = _kind(options, job, num_workers=num_workers)(
        job,
        replica,
        _layout(options, parameters),
        parameters=parameters,
        links=[
            _link(options, doors, world, part=part, number=world.rejoin)
            for part in range(options.num_servers)
        ],
        number=world.rank,
        num_workers=num_workers,
        packing=_packing(options),
        takes_weights=_rules(options).sends_weights,
        speeds=_speeds(options, job, num_workers=num_workers),
    )
    built.wait_in_forward(users)
    return built


def _link(
    options: ParameterServer,
    doors: Doors,
    world: World,
    *,
    part: int,
    number: int,
    patience: float | None = None,
) -> Link:
    """A way to a part's server; ``number`` and ``patience`` as `Link` has them."""
    first, terms = options.num_workers(world.size) + part, _terms(options, world, part=part)
    return Link(doors, first, number=number, terms=terms, patience=patience)


def _terms(options: ParameterServer, world: World, *, part: int) -> Terms | None:
    """None where no part ever has a backup."""
    first = options.num_workers(world.size) + part
    return Terms(world, part=part, first=first) if options.server_backups else None


def _kind(options: ParameterServer, job: Job, *, num_workers: int) -> Callable[..., Worker]:
    if options.mode != "average":
        return partial(Worker, own_norm=options.mode == "async")
    if job.num_microbatches < num_workers:
        remedy = f"leaves some of {num_workers} workers nothing to train on; lower train.microbatch_size"
        raise ConfigError("strategy.mode", options.mode, f"{job.num_microbatches} microbatches: {remedy}")
    return partial(Averaging, stride=options.average_every, elastic=options.elastic)


def server(options: ParameterServer, job: Job, world: World) -> Server | Backup:
    """This rank's part of a fresh model, with a session with its backup or with the server it backs up."""
    number = world.rank - options.num_workers(world.size)
    part, is_backup = number % options.num_servers, number >= options.num_servers
    doors = _doors(options, world, patience=1.0)
    terms = _terms(options, world, part=part)
    if terms is None:
        return _fresh_server(options, job, world, doors, part=part)
    partner = world.rank + (-options.num_servers if is_backup else options.num_servers)
    built = _fresh_server(options, job, world, doors, part=part, terms=terms, partner=partner)
    if world.rejoin:
        return _late_backup(built, doors, world, terms)
    session = doors.open(partner)
    if is_backup:
        return Backup(built, session, terms, rank=world.rank)
    built.ledger.begin(session, whole=False)
    return built


def _late_backup(built: Server, doors: Doors, world: World, terms: Terms) -> Backup:
    """Of a rank that was lost and started again: who took over from it has its part."""
    holder = terms.holder()
    if holder.rank in (world.rank, NOBODY):
        raise LaunchError(f"rank {world.rank} was started again, but nobody has kept its part meanwhile")
    doors.knock()
    session = doors.open(holder.rank, number=world.rejoin, since=holder.since, patience=PATIENCE)
    terms.holder()  # it may have gone on alone since
    return Backup(built, session, terms, rank=world.rank)


def _fresh_server(
    options: ParameterServer,
    job: Job,
    world: World,
    doors: Doors,
    *,
    part: int,
    terms: Terms | None = None,
    partner: int | None = None,
) -> Server:
    """The model is built whole to be cut, as on every rank; the rest of it is freed."""
    parameters, _ = in_forward_order(job.build_model())
    weights = {name: p.data for name, p in parameters.items()}
    held = Part(job, _layout(options, parameters), server=part, weights=weights)
    hall = Hall(
        _rules(options),
        num_workers=options.num_workers(world.size),
        may_lose=partial(options.may_lose, num_processes=world.size),
        min_workers=options.min_workers or 1,
        sharing=_sharing(options, job, num_workers=options.num_workers(world.size)) if part == 0 else None,
    )
    ledger = Ledger(held, hall, rank=world.rank, terms=terms)
    agreement = _agreement(options, world, hall, ledger, part=part)
    return Server(
        held,
        hall,
        doors=doors,
        update=_update(options, held, hall, ledger, agreement),
        agreement=agreement,
        ledger=ledger,
        partner=partner,
        packing=_packing(options),
    )


def _steps_ahead(options: ParameterServer) -> int:
    """That a worker may be, of the update made next."""
    return options.staleness if options.mode == "stale" else 0


def _sharing(options: ParameterServer, job: Job, *, num_workers: int) -> Sharing | None:
    if options.balance == "none":
        return None
    return Sharing(num_workers=num_workers, ahead=_steps_ahead(options) + job.prefetch)


def _speeds(options: ParameterServer, job: Job, *, num_workers: int) -> Speeds | None:
    if options.balance == "none":
        return None
    return Speeds(size=num_workers, lead=_steps_ahead(options) + job.prefetch + 1)


def _update(options: ParameterServer, part: Part, hall: Hall, ledger: Ledger, agreement: Agreement) -> Update:
    if options.mode == "async":
        return Alone(part, hall, ledger, damping=options.damping)
    if options.mode != "average":
        shares = None if _steps_ahead(options) else hall.sharing  # who is ahead has gone on from the step
        return Summed(part, hall, ledger, agreement=agreement, shares=shares)
    if options.elastic is None:
        return Mean(part, hall, ledger, agreement=agreement)
    return Centre(part, hall, ledger)


def _agreement(options: ParameterServer, world: World, hall: Hall, ledger: Ledger, *, part: int) -> Agreement:
    first = options.num_workers(world.size)
    doors = _doors(options, world, patience=PATIENCE)
    if options.mode == "async" or options.elastic is not None:
        return Leading(hall, ledger, doors, others={})
    if part == 0:
        numbers = range(1, options.num_servers)
        others = {n: (first + n, _terms(options, world, part=n)) for n in numbers}
        return Leading(hall, ledger, doors, others=others)

    def connect(since: int) -> Link:
        patience = SUCCESSOR_PATIENCE if since else None
        return _link(options, doors, world, part=0, number=since, patience=patience)

    return Following(connect, num_workers=first)


def _doors(options: ParameterServer, world: World, *, patience: float) -> Doors:
    limit = patience * (options.silent_after or world.collective_timeout)
    return Doors(world, num_workers=options.num_workers(world.size), limit=limit)


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
    return Bounded(staleness=_steps_ahead(options))
