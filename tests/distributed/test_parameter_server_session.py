"""The wire between a worker and a server, in two processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from distrib.errors import LaunchError, PeerLostError
from distrib.strategies.parameter_server.session import IN_ONE_PIECE, Op, Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LIMIT = 30.0


def session_over(file: Path, *, rank: int) -> Session:
    """One side of a pair that meets by a file."""
    store = dist.FileStore(str(file), 2)
    group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=LIMIT))
    return Session(group, rank=rank, peer=f"rank {1 - rank}", limit=LIMIT)


def send_and_die(file: Path, numel: int, after: float) -> None:
    """Sends more than sockets hold and is killed in the middle of it."""
    session, message = session_over(file, rank=1), torch.ones(numel)
    assert session.hear().op == Op.FACTS
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    session.send(message)
    time.sleep(LIMIT)


def test_a_peer_that_dies_in_the_middle_of_a_message_is_lost_at_once(tmp_path: Path) -> None:
    """gloo alone would say nothing before the time limit, and then that it was silent."""
    context = multiprocessing.get_context("spawn")
    file, numel = tmp_path / "store", 2 * 10**8
    other = context.Process(target=send_and_die, args=(file, numel, 0.05))
    other.start()
    try:
        session, message = session_over(file, rank=0), torch.ones(numel)
        session.tell(Op.FACTS)
        with pytest.raises(PeerLostError, match="lost rank 1"):
            session.receive(message)
    finally:
        other.kill()
        other.join()
    assert other.exitcode == -signal.SIGKILL


def stop(file: Path, numel: int) -> None:
    """Is ready for a message, and then stops before it comes."""
    session = session_over(file, rank=1)
    session.start_receive(torch.zeros(numel))
    session.tell(Op.FACTS)
    time.sleep(0.2)  # gloo's own thread tells that it is ready
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("confirms", [True, False], ids=["receipt", "answer"])
def test_a_peer_that_dies_before_a_message_has_left_is_lost_at_once(tmp_path: Path, confirms: bool) -> None:
    """gloo's wait for the sending alone would end with the time limit, also where a mark follows."""
    file, numel = tmp_path / "store", 2 * 10**8
    other = multiprocessing.get_context("spawn").Process(target=stop, args=(file, numel))
    other.start()
    try:
        session = session_over(file, rank=0)
        session.hear()
        time.sleep(1.0)
        session.send(torch.ones(numel))
        threading.Timer(0.2, other.kill).start()
        with pytest.raises(PeerLostError, match="lost rank 1"):
            session.confirmed() if confirms else session.hear()
    finally:
        other.kill()
        other.join()
    assert other.exitcode == -signal.SIGKILL


def echo(file: Path, sizes: list[int]) -> None:
    """Sends back what comes, all of one tag at once."""
    session = session_over(file, rank=1)
    received = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    for waiting in [session.start_receive(tensor, 5) for tensor in received]:
        waiting.wait()
    for tensor in received:
        session.send(tensor, 5)
    session.hear()


def test_messages_of_one_tag_keep_their_order(tmp_path: Path) -> None:
    """Short ones and long ones, which have marks."""
    sizes = [1, IN_ONE_PIECE, IN_ONE_PIECE + 1, 10**6, 3, 10**5]
    other = multiprocessing.get_context("spawn").Process(target=echo, args=(tmp_path / "store", sizes))
    other.start()
    try:
        session = session_over(tmp_path / "store", rank=0)
        ours = [torch.full((size,), number, dtype=torch.uint8) for number, size in enumerate(sizes)]
        for tensor in ours:
            session.send(tensor, 5)
        theirs = [torch.zeros_like(tensor) for tensor in ours]
        for waiting in [session.start_receive(tensor, 5) for tensor in theirs]:
            waiting.wait()
        session.tell(Op.FACTS)
        assert all(map(torch.equal, ours, theirs))
    finally:
        other.join(LIMIT)
        other.kill()


def answer_late(file: Path, beats: bool) -> None:
    """Answers after more than the time limit; with ``beats`` it says meanwhile that it lives."""
    session = session_over(file, rank=1)
    session.limit = timedelta(seconds=1)
    session.hear()
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        time.sleep(session.beat_seconds)
        if beats:
            session.beat()
    session.tell(Op.FACTS, 7.0)
    session.confirmed()


def test_the_time_limit_is_of_silence_not_of_waiting_for_others(tmp_path: Path) -> None:
    """Who says that it lives may answer late; who says nothing is given up."""
    context = multiprocessing.get_context("spawn")
    for beats in (True, False):
        file = tmp_path / f"store-{beats}"
        other = context.Process(target=answer_late, args=(file, beats))
        other.start()
        try:
            session = session_over(file, rank=0)
            session.limit = timedelta(seconds=1)
            if beats:
                assert session.ask(Op.FACTS).numbers[0] == 7.0
                session.confirm()
                other.join(LIMIT)
            else:
                with pytest.raises(LaunchError, match="silent for 1 s"):
                    session.ask(Op.FACTS)
        finally:
            other.kill()
            other.join()
