"""How ranks find each other: they meet at a store, agree on facts, and form process groups.

The first meeting is the place where a job hangs in practice, so it has a time limit of its own, and
an answer that names the ranks that are missing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from distrib.errors import ConfigError, DistribError, LaunchError, PeerLostError
from distrib.sealed import opened, room, sealed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, ProcessGroupGloo, Store  # type: ignore[attr-defined]

    from distrib.world import World

POLL_SECONDS = 0.02
ANSWER_SECONDS = 2.0
"""How long rank 0 stays when the meeting failed, so that the others hear why."""
LATE_SECONDS = 5.0
"""How much longer the others wait for rank 0's verdict, which may have started later than they."""

PEER_LOST = re.compile(
    r"gloo/transport|Connection (closed|reset) by peer|Broken pipe|NCCL error: remote process"
    r"|Horovod has been shut down|failed to pass monitoredBarrier"
)
"""How the transports word it: they raise plain RuntimeErrors."""

NO_INTERFACE = "Unable to find address for"
"""How gloo words that ``GLOO_SOCKET_IFNAME`` names none of this host's interfaces."""


def meet(world: World, *, timeout: float, digest: str, settings: Mapping[str, Any] | None = None) -> World:
    """The world with the store at which all its ranks have met.

    Args:
        world: this process's place, as `World.from_env` read it.
        timeout: seconds until every rank must have come.
        digest: equal on all ranks that were started alike.
        settings: what the digest is of, by dotted key, to say what differs.

    A rank that was started again (``world.rejoin``) waits for nobody.

    Raises `LaunchError` on every waiting rank where ranks are missing, naming them, and `ConfigError`
    on every rank where digests differ. A world of one has nobody to meet and keeps no store.
    """
    if world.size == 1:
        return world
    deadline = time.monotonic() + timeout
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    from distrib.store import connect

    with _translated(world):
        served = connect(world, timeout=timeout)
        _check_token(served, world)
        store = PrefixStore(f"distrib/{room(world.token)}/{world.attempt}", served)
        card = {"host": socket.gethostname(), "pid": os.getpid(), "digest": digest}
        _tell(store, world, f"settings/{world.rank}", json.dumps(dict(settings or {}), default=str))
        _tell(store, world, f"rank/{world.rank}", json.dumps(card))
        if world.rank == 0:
            refusal = _judge(store, world, deadline=deadline, timeout=timeout)
            _announce(store, world, refusal)
        elif world.rejoin:
            refusal = _enter(store, world, digest=digest, deadline=deadline, timeout=timeout)
        else:
            refusal = _hear(store, world, deadline=deadline + LATE_SECONDS, timeout=timeout)
    if refusal is not None:
        raise refusal
    return replace(world, store=store)


def agree(world: World, key: str, value: str | None = None, *, timeout: float = 120.0) -> str:
    """Rank 0's ``value``, told to every rank that asks for ``key``.

    Every rank calls this in the same order. Raises `LaunchError` where rank 0 does not say it in time.
    """
    if world.rank == 0:
        if value is None:
            raise ValueError(f"rank 0 has to know the value of {key}")
        if world.store is None:
            return value
    with _translated(world):
        name = f"agreed/{key}/{world.store.add(f'asked/{key}/{world.rank}', 1)}"
        if world.rank == 0:
            _tell(world.store, world, name, str(value))
        elif wait_for(world.store, [name], time.monotonic() + timeout):
            raise LaunchError(f"rank {world.rank} waited {timeout:g} s for rank 0 to say {key}")
        return _told(world.store, world, name)


def remember(world: World, key: str, value: str) -> None:
    """Keeps ``value`` for later attempts of the job while the store lives, which torchrun may serve."""
    if world.store is not None:
        _tell(_lasting(world), world, key, value)


def recall(world: World, key: str) -> str | None:
    """What an earlier attempt kept; None where there was none."""
    if world.store is None or not _lasting(world).check([key]):
        return None
    return _told(_lasting(world), world, key)


def _lasting(world: World) -> Store:
    """The job's place at the store, shared by its attempts."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    return PrefixStore(f"distrib/{room(world.token)}/kept", world.store.underlying_store)


def process_group(world: World, *, backend: str | None = None) -> None:
    """Makes torch's default process group of all ranks of ``world``, anew each time it is called.

    Args:
        world: with the store that `meet` gave it.
        backend: torch's name; None: gloo for CPU tensors and, on a GPU, NCCL for its own.

    A collective that takes longer than ``world.collective_timeout`` seconds fails; with
    ``world.check_collectives`` so does one that the ranks call differently, at once. Raises `LaunchError`
    where the ranks cannot reach each other.
    """
    import torch.distributed as dist

    from distrib.diagnosis.checked import start_checking
    from distrib.diagnosis.collectives import record

    record()

    if world.store is None and world.size > 1:
        raise LaunchError(f"rank {world.rank} of {world.size} has not met the others (rendezvous.meet)")
    store = _store_of_a_group(world, "group")
    with _translated(world):
        dist.init_process_group(
            backend or ("cpu:gloo,cuda:nccl" if world.device.startswith("cuda") else "gloo"),
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=world.collective_timeout),
        )
        if world.check_collectives and world.size > 1:
            start_checking(world, dist.PrefixStore("checked", store))  # type: ignore[attr-defined]


def pair(world: World, name: str, *, rank: int, peer: str, limit: float | None = None) -> ProcessGroupGloo:
    """A process group of two ranks alone, besides torch's default one; gloo, for tensors on the CPU.

    Args:
        world: with the store that `meet` gave it.
        name: the same on both sides, and never used twice.
        rank: 0 or 1.
        peer: the other side, in words.
        limit: seconds in which the other side must come; None: ``world.collective_timeout``.

    Raises `LaunchError` where it does not.
    """
    from torch.distributed import PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

    _stay_on_this_machine(world)
    seconds = limit or world.collective_timeout
    with _translated(world):
        # gloo waits for the other with the store's client locked, and all threads that need it with it: for
        # good, where the other dies after it has said that it is here. So the pair has a client of its own.
        store = PrefixStore(f"pair/{name}", world.store.clone())
        store.set(f"here/{rank}", "")
        if wait_for(store, [f"here/{1 - rank}"], time.monotonic() + seconds):
            raise PeerLostError(f"rank {world.rank} did not reach {peer}: it did not come in {seconds:g} s")
        try:
            return ProcessGroupGloo(store, rank, 2, timedelta(seconds=seconds))
        except RuntimeError as error:
            if NO_INTERFACE in str(error):
                raise
            first = str(error).splitlines()[0]
            raise PeerLostError(f"rank {world.rank} did not reach {peer}: {first}") from error


def side_group(world: World, name: str, *, rank: int, size: int) -> ProcessGroup:
    """A gloo group besides the default one, of the ``size`` ranks of ``world`` that give one ``name``.

    Args:
        rank: this process's place in the group, from 0.

    It moves CPU tensors, and ends when nothing refers to it any more.
    """
    import torch.distributed as dist

    store = _store_of_a_group(world, f"side/{name}")
    with _translated(world):
        timeout = timedelta(seconds=world.collective_timeout)
        group = dist.ProcessGroupGloo(store, rank, size, timeout)
    return cast("ProcessGroup", group)  # torch's stubs do not say that it has its methods


def _store_of_a_group(world: World, name: str) -> Store:
    """Where a group's ranks find each other: a place of its own each time, which all of them ask for in turn.

    Addresses of a closed group must not be read by the next.
    """
    from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

    if world.store is None:
        return HashStore()
    _stay_on_this_machine(world)
    return PrefixStore(f"{name}/{world.store.add(f'groups/{world.rank}', 1)}", world.store)


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` only says that another rank is gone or silent."""
    from torch.distributed import DistNetworkError

    return isinstance(error, DistNetworkError) or PEER_LOST.search(str(error)) is not None


def _check_token(served: Store, world: World) -> None:
    """Before anything else is read: whether whoever serves the store is of this job. Rank 0 says so."""
    name = "distrib/served"
    if world.rank == 0:
        _tell(served, world, name, socket.gethostname())
    elif served.check([name]):
        _told(served, world, name)


def _tell(store: Store, world: World, name: str, text: str) -> None:
    store.set(name, sealed(text, token=world.token, name=name))


def _told(store: Store, world: World, name: str) -> str:
    return opened(store.get(name), token=world.token, name=name)


def _judge(store: Store, world: World, *, deadline: float, timeout: float) -> DistribError | None:
    """Rank 0: waits for everyone and compares what they were started with."""
    if wait_for(store, _cards(world), deadline):
        return _missing(store, world, timeout)
    cards = {rank: json.loads(_told(store, world, card)) for rank, card in enumerate(_cards(world))}
    others = [rank for rank, card in cards.items() if card["digest"] != cards[0]["digest"]]
    if not others:
        return None
    ours, theirs = (json.loads(_told(store, world, f"settings/{rank}")) for rank in (0, others[0]))
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    first = keys[0] if keys else "configuration"
    return ConfigError(
        ", ".join(keys) or "configuration",
        f"{ours.get(first)} on rank 0, {theirs.get(first)} on rank {others[0]}",
        f"start every rank with the same settings; those of rank {_several(others)} differ from rank 0's",
    )


def _missing(store: Store, world: World, timeout: float) -> LaunchError:
    here = _present(store, world)
    hosts = sorted({json.loads(_told(store, world, f"rank/{rank}"))["host"] for rank in here})
    missing = [rank for rank in range(world.size) if rank not in here]
    return LaunchError(
        f"missing after {timeout:g} s: rank {_several(missing)} of {world.size}. "
        f"The others (on {', '.join(hosts)}) met at {world.master_address}:{world.master_port}. "
        f"Look at the missing ranks' logs; raise timeouts.start if they are only slow"
    )


def _announce(store: Store, world: World, refusal: DistribError | None) -> None:
    """Rank 0: tells the others, and on refusal stays until they have heard it."""
    present = _present(store, world)
    _tell(store, world, "verdict", json.dumps(_to_json(refusal)))
    if refusal is not None:
        wait_for(store, [f"heard/{rank}" for rank in present if rank], time.monotonic() + ANSWER_SECONDS)


def _hear(store: Store, world: World, *, deadline: float, timeout: float) -> DistribError | None:
    if wait_for(store, ["verdict"], deadline):
        return _missing(store, world, timeout)
    refusal = _from_json(json.loads(_told(store, world, "verdict")))
    if refusal is not None:
        store.set(f"heard/{world.rank}", "")
    return refusal


def _enter(
    store: Store, world: World, *, digest: str, deadline: float, timeout: float
) -> DistribError | None:
    """A rank that was started again: the others met long ago, and it must be of the same run as they."""
    refusal = _hear(store, world, deadline=deadline, timeout=timeout)
    first = json.loads(_told(store, world, "rank/0"))
    if refusal is None and first["digest"] != digest:
        remedy = f"rank {world.rank} may join the running job with the settings that this was started with"
        return ConfigError("configuration", f"not that of rank 0 on {first['host']}", remedy)
    return refusal


def _to_json(refusal: DistribError | None) -> list[str] | None:
    if isinstance(refusal, ConfigError):
        return [refusal.key, str(refusal.value), refusal.remedy]
    return None if refusal is None else [str(refusal)]


def _from_json(words: list[str] | None) -> DistribError | None:
    if words is None:
        return None
    return LaunchError(words[0]) if len(words) == 1 else ConfigError(words[0], words[1], words[2])


def _cards(world: World) -> list[str]:
    return [f"rank/{rank}" for rank in range(world.size)]


def _present(store: Store, world: World) -> list[int]:
    return [rank for rank, card in enumerate(_cards(world)) if store.check([card])]


def wait_for(store: Store, keys: Sequence[str], deadline: float) -> list[str]:
    """The keys that are not there by ``deadline``, a time of `time.monotonic`.

    Asks again and again instead of `Store.wait`, which writes C++ stack traces at its time limit.
    """
    left = [key for key in keys if not store.check([key])]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [key for key in left if not store.check([key])]
    return left


def _several(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:16]))
    return shown if len(ranks) <= 16 else f"{shown} and {len(ranks) - 16} more"


def _stay_on_this_machine(world: World) -> None:
    """Lets gloo use the loopback interface where all ranks are here: it needs no host name that resolves."""
    if world.local_size == world.size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


@contextmanager
def _translated(world: World) -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise PeerLostError(
            f"rank {world.rank} lost the store at {world.master_address}:{world.master_port}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except RuntimeError as error:
        if NO_INTERFACE not in str(error):
            raise
        raise LaunchError(
            f"rank {world.rank}: {socket.gethostname()} has no interface called "
            f"{os.environ.get('GLOO_SOCKET_IFNAME')}; set GLOO_SOCKET_IFNAME on each host to its own name of "
            "the interface that all share, or unset it"
        ) from error
