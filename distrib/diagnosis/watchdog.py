"""The thread of each rank that answers for it, and notices when ranks cannot go on together."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from distrib.core import UNWATCHED, Progress
from distrib.diagnosis import collectives
from distrib.diagnosis.cards import Board, Met
from distrib.diagnosis.checked import stop_checking
from distrib.diagnosis.explain import answer, explain, explain_end, hang, mismatch, went_on
from distrib.diagnosis.last_words import before_terminate
from distrib.diagnosis.stacks import write_all
from distrib.diagnosis.state import RankState
from distrib.errors import LaunchError
from distrib.launchers.failure import FAILED

if TYPE_CHECKING:
    from distrib.world import World

TICK_SECONDS = 0.2
SUSPICIOUS_SECONDS = 0.15
"""An operation under way for longer is compared with the next rank's."""


@contextmanager
def watched(world: World, *, log: Path, check_steps: int | None) -> Iterator[Progress]:
    """Yields what is to be told of the optimizer steps done; watches over this rank meanwhile.

    Args:
        log: this rank's, where its stacks go.
        check_steps: steps after which operations run unchecked (`distrib.diagnosis.checked`); None: never.

    Raises `LaunchError` in place of the transport's complaint where ranks called different collective
    operations, or one took longer than ``world.collective_timeout``: it says which ranks, where they stand.
    """
    if world.store is None:
        yield UNWATCHED
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    state = RankState(world.rank, device=world.device)
    with log.open("a", encoding="utf-8") as file:
        watchdog = Watchdog(world, state, log=file, logs=log.parent)
        watchdog.start()
        try:
            with before_terminate(watchdog.speak):
                yield Steps(state, check=check_steps)
        except RuntimeError as error:
            explained = explain(error, state, world=world, logs=log.parent)
            if explained is None:
                raise
            raise LaunchError(explained) from error
        finally:
            watchdog.stop()


class Steps(Progress):
    """Is told of each optimizer step, at the cost of two assignments and a comparison."""

    def __init__(self, state: RankState, *, check: int | None) -> None:
        self._state = state
        self._left = check

    def __call__(self, steps: int) -> None:
        self._state.stepped(steps)
        if self._left:
            self._left -= 1
            if not self._left:
                stop_checking(self._state.device)

    def met(self, steps: int) -> None:
        self._state.meets(steps)


class Watchdog:
    """Wakes five times a second: answers the others' questions, and looks at what its rank waits for.

    Args:
        log: where this rank's stacks go.
        logs: the folder of all ranks' logs.
    """

    def __init__(self, world: World, state: RankState, *, log: TextIO, logs: Path) -> None:
        self._world, self._state = world, state
        self._log, self._logs = log, logs
        self._answered = 0
        self._told_idle = False
        self._met: Met | None = None
        self._waiting: tuple[tuple[tuple[str, str], ...], float] = (), 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, unless it is in a request to a store that no longer answers."""
        self._end.set()
        self._thread.join(timeout=1.0)
        faulthandler.cancel_dump_traceback_later()

    def speak(self) -> None:
        """Ends the job with better words than C++ would, where the ranks' calls are why it is ending."""
        words = explain_end(self._state, world=self._world, logs=self._logs)
        if words is not None:
            self._end_job(words)

    def _run(self) -> None:
        from torch.distributed import DistError

        try:
            board = Board.of(self._world)
            self._answered = board.asked()
            while not self._end.wait(TICK_SECONDS):
                self._look(board)
        except DistError:
            return  # rank 0 is gone, and took the store with it: the supervisor says why

    def _look(self, board: Board) -> None:
        # Where this thread cannot run, because native code holds Python's lock, C writes the stacks.
        faulthandler.dump_traceback_later(self._world.collective_timeout, file=self._log)
        self._answer(board)
        self._compare(board)
        self._compare_met(board)
        if self._state.idle > self._world.collective_timeout and not self._told_idle:
            self._tell_idle(board)

    def _answer(self, board: Board) -> None:
        question = board.asked()
        if question > self._answered:
            self._answered = question
            answer(board, self._state, question=question)
            write_all(self._log, "a rank asks where the others are")

    def _compare(self, board: Board) -> None:
        """Ends the job where this rank and the next wait in operations that can never meet."""
        now, progress = time.monotonic(), collectives.progress()
        if progress != self._waiting[0]:
            self._waiting = progress, now
        if now - self._waiting[1] < SUSPICIOUS_SECONDS or all(called == done for called, done in progress):
            return
        calls = collectives.first_difference(board.compare(collectives.recorded().calls))
        if calls:
            self._state.waits_in_vain = True
            self._end_job(mismatch(board, self._state, calls, logs=self._logs))

    def _compare_met(self, board: Board) -> None:
        """Ends the job where this rank and the next have called operations that differ, and gone on."""
        met, self._state.met = self._state.met, None
        if met is not None:
            board.meet(met)
            self._met = met
        neighbour = (board.rank + 1) % board.size
        if self._met is None or (other := board.met(neighbour)) is None:
            return
        if other.steps >= self._met.steps:
            met, self._met = self._met, None
            calls = collectives.first_difference({board.rank: met.calls, neighbour: other.calls})
            if calls:
                self._end_job(went_on(board, met.steps, calls, logs=self._logs))

    def _tell_idle(self, board: Board) -> None:
        """Rank 0 waits in no operation of torch's, which has a limit of its own: said once, and no end."""
        if self._world.rank == 0 and not self._state.has_raised and self._state.card().collective is None:
            self._told_idle = True
            why = f"rank 0 has made no optimizer step for {self._state.idle:.0f} s (timeouts.collective)"
            print("notice: " + hang(board, self._state, why, logs=self._logs), file=sys.stderr, flush=True)

    def _end_job(self, words: str) -> None:
        """The thread that trains waits in native code, which nothing but the process's end interrupts."""
        write_all(self._log, "the ranks do not call the same collective operation")
        print(f"{FAILED.format(rank=self._world.rank)}\n{words}", file=sys.stderr, flush=True)
        os._exit(LaunchError.exit_code)
