"""Worker processes that are started once and then run many distributed functions.

Importing torch costs more than most proofs: a suite that starts fresh processes for each would
spend its time there.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from distrib.errors import LaunchError
from distrib.world import World


def _serve(connection: Connection, rank: int) -> None:
    """A worker's life: receive a call, meet the others, run it, send back what it returned."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    import torch
    import torch.distributed as dist
    from torch.distributed import FileStore  # type: ignore[attr-defined]

    torch.set_num_threads(1)
    modules = 0
    for call in iter(connection.recv, None):
        function, arguments, size, store_path, timeout = call
        answer: tuple[Any, str | None]
        try:
            store = FileStore(store_path, size)
            world = World(
                rank=rank,
                size=size,
                local_rank=rank,
                local_size=size,
                store=store,
                collective_timeout=timeout,
            )
            answer = function(world, *arguments), None
        except BaseException:  # noqa: BLE001 (whatever it is, the caller is told)
            answer = None, traceback.format_exc()
        finally:
            with contextlib.suppress(Exception):
                if dist.is_initialized():
                    dist.destroy_process_group()
            gc.collect()  # of groups in cycles, each of which goes on asking 100 times a second what is new
            if len(sys.modules) > modules:
                # What an import made stays. To look at it again takes 0.4 s a time with every engine loaded.
                gc.freeze()
                modules = len(sys.modules)
        connection.send(answer)


class Workers:
    """Up to ``size`` processes; `run` calls a function on the first so many of them.

    A context manager: leaving it ends the processes.
    """

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(
        self, function: Callable[..., Any], *arguments: Any, size: int, timeout: float = 180.0
    ) -> list[Any]:
        """``function(world, *arguments)`` on ``size`` ranks; their answers by rank.

        ``function`` and its arguments are pickled, so it is a module's own function. Raises
        `LaunchError` with the first rank's traceback when one fails, or when time is up.
        """
        with tempfile.TemporaryDirectory() as folder:
            for connection in self._connections[:size]:
                connection.send((function, arguments, size, f"{folder}/store", timeout))
            return [self._answer(rank, timeout=timeout) for rank in range(size)]

    def _answer(self, rank: int, *, timeout: float) -> Any:
        if not wait([self._connections[rank]], timeout=timeout):
            self.close()
            raise LaunchError(f"rank {rank} gave no answer within {timeout:g} s")
        value, failure = self._connections[rank].recv()
        if failure is not None:
            self.close()
            raise LaunchError(f"rank {rank} failed:\n{failure}")
        return value

    @property
    def alive(self) -> bool:
        """Whether `run` may be called: false after a failure, which ends the processes."""
        return bool(self._processes) and all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        """Ends the processes; may be called twice."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
