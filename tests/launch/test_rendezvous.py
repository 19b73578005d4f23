"""Ranks meet within a time limit, or each of them hears who is missing or what differs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jobs import HERE, job

from distrib.errors import ConfigError, DistribError, LaunchError, PeerLostError
from distrib.launchers.failure import PEER_LOST
from distrib.rendezvous import agree, meet, pair, process_group
from distrib.world import World

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]


@pytest.fixture
def worlds() -> list[World]:
    """Three ranks of one job; in these tests each is a thread."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    return [
        World(rank=rank, size=3, local_rank=rank, local_size=3, master_address="127.0.0.1", master_port=port)
        for rank in range(3)
    ]


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returned or raised."""

    def caught(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except DistribError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(caught, calls))


def meeting(world: World, *, timeout: float = 5.0, digest: str = "a", **settings: Any) -> Callable[[], World]:
    return lambda: meet(world, timeout=timeout, digest=digest, settings=settings)


def test_ranks_meet_and_agree(worlds: list[World]) -> None:
    """All ranks meet, and hear what rank 0 says, each time it says something new."""
    met = together([meeting(world) for world in reversed(worlds)])
    for said in ("runs/1", "runs/2"):
        heard = together(
            [lambda w=w, said=said: agree(w, "run_dir", said if w.rank == 0 else None) for w in met]
        )
        assert heard == [said] * 3


def test_every_waiting_rank_names_the_missing_one(worlds: list[World]) -> None:
    """Who came hears within the limit who did not, and where they met."""
    start = time.monotonic()
    errors = together([meeting(world, timeout=0.5) for world in worlds[:2]])
    assert time.monotonic() - start < 4
    for error in errors:
        assert isinstance(error, LaunchError)
        assert "missing after 0.5 s: rank 2 of 3" in str(error)
        assert f"127.0.0.1:{worlds[0].master_port}" in str(error)


def test_a_missing_first_rank_is_named(worlds: list[World]) -> None:
    """Without rank 0 there is nobody to ask: the others name it, and the address they tried."""
    errors = together([meeting(world, timeout=0.5) for world in worlds[1:]])
    for error in errors:
        assert isinstance(error, LaunchError)
        assert "missing after 0.5 s: rank 0 of 3" in str(error)
        assert f"127.0.0.1:{worlds[0].master_port} ([Errno 111] Connection refused)" in str(error)


def test_a_stranger_on_the_port_does_not_hold_a_rank_for_ever(worlds: list[World]) -> None:
    """A program that takes connections and says nothing is told from a store."""
    with socket.create_server(("127.0.0.1", worlds[0].master_port or 0)):
        (error,) = together([meeting(worlds[1], timeout=0.5)])
    assert isinstance(error, LaunchError)
    assert "takes connections, but does not answer" in str(error)


def test_a_port_in_use_is_named(worlds: list[World]) -> None:
    """Rank 0 says which port is taken and which variable to set."""
    with socket.create_server(("127.0.0.1", worlds[0].master_port or 0)):
        (error,) = together([meeting(worlds[0], timeout=0.5)])
    assert isinstance(error, LaunchError)
    assert f"127.0.0.1:{worlds[0].master_port}" in str(error)
    assert "MASTER_PORT" in str(error)


def test_ranks_that_were_started_differently_are_refused(worlds: list[World]) -> None:
    """Every rank hears which settings differ, on which rank, and both values."""
    common = {"seed": 0, "train.steps": 5}
    errors = together(
        [
            meeting(worlds[0], digest="a", **common, **{"optimizer.lr": 0.1}),
            meeting(worlds[1], digest="a", **common, **{"optimizer.lr": 0.1}),
            meeting(worlds[2], digest="b", **common, **{"optimizer.lr": 0.2}),
        ]
    )
    for error in errors:
        assert isinstance(error, ConfigError)
        assert error.key == "optimizer.lr"
        assert error.value == "0.1 on rank 0, 0.2 on rank 2"


def test_a_served_store_is_used_and_attempts_do_not_mix(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun every rank is a client, and a restart does not read what the first start wrote."""
    from torch.distributed import TCPStore

    agent = TCPStore(
        "127.0.0.1",
        worlds[0].master_port or 0,
        is_master=True,
        timeout=timedelta(seconds=5),
        wait_for_workers=False,
    )
    for attempt in ("0", "1"):
        ranks = [replace(world, store_is_served=True, attempt=attempt) for world in worlds]
        met = together([meeting(rank) for rank in ranks])
        heard = together(
            [lambda w=w, attempt=attempt: agree(w, "said", attempt if w.rank == 0 else None) for w in met]
        )
        assert heard == [attempt] * 3
    monkeypatch.setattr("distrib.rendezvous.LATE_SECONDS", 0.2)
    late = replace(worlds[1], store_is_served=True, attempt="2")
    (error,) = together([meeting(late, timeout=0.3)])
    assert "rank 0, 2 of 3" in str(error)
    del agent


def test_a_rank_whose_store_is_gone_blames_nobody_but_says_so(worlds: list[World]) -> None:
    """Rank 0 serves the store, and takes it along when it ends: the others only lost it."""
    from torch.distributed import DistNetworkError

    from distrib.rendezvous import _translated

    with pytest.raises(PeerLostError, match=r"rank 1 lost the store at 127\.0\.0\.1"), _translated(worlds[1]):
        raise DistNetworkError("failed to recv, got 0 bytes")
    assert PeerLostError.exit_code == PEER_LOST


def test_a_world_of_one_needs_no_store() -> None:
    """One rank meets nobody, agrees with itself, and still can have a process group."""
    import torch.distributed as dist

    world = meet(World(), timeout=1, digest="")
    assert agree(world, "run_dir", "runs/1") == "runs/1"
    for _ in range(2):
        process_group(world)
        assert dist.get_world_size() == 1
        dist.destroy_process_group()


def test_a_group_can_be_made_again_and_a_lost_peer_is_noticed(tmp_path: Path) -> None:
    """Two real ranks: two groups in turn; then rank 1 is killed, and the job ends in seconds, blaming it."""
    with job(tmp_path, "worker_standin", "groups", str(tmp_path), preload="torch") as started:
        ended = started.end()
        assert started.log(0).count("sum 3.0") == 2
        assert "rank 1 was killed by SIGKILL:" in ended.err
        assert ended.code == 137
        assert ended.seconds < 15


def test_a_rank_that_hangs_at_start_is_named(tmp_path: Path) -> None:
    """The rank that does come says who does not, and ends the job."""
    with job(tmp_path, "worker_standin", "hangs", str(tmp_path), preload="torch") as started:
        ended = started.end()
        assert ended.code == 1
        assert "rank 0 failed with exit code 1:\nmissing after 1 s: rank 1 of 2." in ended.err
        assert not started.processes()


def test_a_user_error_is_its_message_alone(tmp_path: Path) -> None:
    """What the user can mend is said without a traceback, with its own exit code."""
    with job(tmp_path, "worker_standin", "refuses", str(tmp_path), preload="torch") as started:
        ended = started.end()
        assert ended.code == 2
        assert ended.err.endswith("failed with exit code 2:\nstrategy=x: use y\n")
        assert "Traceback" not in ended.err


def test_torchrun_restarts_come_back(tmp_path: Path) -> None:
    """Stock torchrun: a rank fails in the first attempt, and the second one meets and computes."""
    command = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1", "--standalone"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *command,
            "-m",
            "worker_standin",
            "restarts",
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("sum 3.0") == 2


def test_a_peer_that_dies_while_a_pair_forms_holds_up_no_other_thread(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 killed workers one stopped its server for good: gloo waited with the store's client locked."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    met = together([meeting(world) for world in worlds])
    first = next(world for world in met if world.rank == 0)
    second = next(world for world in met if world.rank == 1)
    second.store.set("pair/half/here/1", "")  # it is here, and nothing more will come of it
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(pair, first, "half", rank=0, peer="rank 1", limit=4.0)
        time.sleep(0.5)
        began = time.monotonic()
        pool.submit(first.store.set, "other", "").result()
        assert time.monotonic() - began < 1.0
        assert isinstance(waiting.exception(), PeerLostError)
