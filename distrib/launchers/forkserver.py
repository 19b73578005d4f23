"""Starts ranks as forks of one process that has imported torch, and the model's libraries, already.

Importing torch and what its first optimizer needs (torch._dynamo) takes 2.2 s of CPU in every rank.
Here it is done once, beside the composing of the configuration. Measured on two cores, command to
first step: 2.4 s -> 1.9 s for two ranks, 4.6 s -> 2.3 s for four (CPU 12 s -> 3 s).

Forking is safe because the server stays single-threaded: imports start no thread when OpenMP and
BLAS are told to use one, and after one that does nothing is forked any more.
``multiprocessing.forkserver`` was tried first: it takes no files or environment per process, skips
``atexit`` in them, and outlives its parent by most of a second.

The protocol, over a socket pair: one JSON line asks, one JSON line answers, in turns.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distrib.errors import LaunchError
from distrib.launchers.base import Command
from distrib.launchers.starting import Files, Running, environment, popen, send_signal

PRELOAD = ("torch", "torch._dynamo")
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ForkServer:
    """The server process, as its parent sees it. A context manager; Linux only (`available`)."""

    def __init__(self, *, preload: tuple[str, ...] = PRELOAD) -> None:
        self._forks = True
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *preload],
                env={**os.environ, **SINGLE_THREAD},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # the terminal's Ctrl-C is the launcher's to pass on
            )

    @staticmethod
    def available() -> bool:
        """Whether forking with torch imported is sound here (macOS's own libraries forbid it)."""
        return sys.platform == "linux"

    def load(self, modules: Collection[str]) -> None:
        """Imports more for the ranks to come. What cannot be imported is left to them, which say so."""
        self._forks = self._ask({"load": list(modules)}, [])

    def start(self, command: Command, files: Files) -> Running:
        """Forks a rank. What is not ``python -m module`` is a fresh process, as is all after an import that
        has begun a thread."""
        if not self._forks or command.argv[:2] != (sys.executable, "-m"):
            return popen(command, files)
        request = {
            "module": command.argv[2],
            "argv": command.argv[3:],
            "env": environment(command),
            "cwd": os.getcwd(),
            "named": list(files.named),
        }
        fds = [files.stdout, files.stderr, *files.named.values()]
        return _Fork(pid=self._ask(request, fds), server=self)

    def poll(self, pid: int) -> int | None:
        """What `Running.poll` says of a rank this server forked."""
        answer: int | None = self._ask({"poll": pid}, [])
        return answer

    def close(self) -> None:
        """Ends the server; may be called twice. Ranks still running are not its concern."""
        self._socket.close()
        # It may be in the middle of its imports, and a misspelt key should not have to wait for them.
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], fds: list[int]) -> Any:
        try:
            _send(self._socket, request, fds)
            return _receive(self._socket)[0]
        except (ConnectionError, EOFError) as error:
            code = self._process.wait()
            raise LaunchError(
                f"the process that imports torch for all ranks ended (exit code {code})"
            ) from error


@dataclass
class _Fork:
    pid: int
    server: ForkServer
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.poll(self.pid)
        return self.code

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        send_signal(self.pid, number, to_group=to_group)


def _send(connection: socket.socket, message: Any, fds: list[int]) -> None:
    line = json.dumps(message).encode() + b"\n"
    sent = socket.send_fds(connection, [line], fds) if fds else 0
    connection.sendall(line[sent:])


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    line, fds, _, _ = socket.recv_fds(connection, 65536, 8)
    while not line.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            raise EOFError
        line += more
    return json.loads(line), fds


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answers until the parent is gone; returns only in a forked rank, with what it was asked to be."""
    while True:
        request, fds = _receive(connection)
        if "load" in request:
            _send(connection, load(request["load"]), [])
            continue
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            _send(connection, os.waitstatus_to_exitcode(status) if pid else None, [])
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.setsid()
            return request, fds
        for fd in fds:
            os.close(fd)
        _send(connection, pid, [])


def become(request: dict[str, Any], fds: list[int]) -> None:
    """Runs the module that was asked for, as ``python -m`` would in a fresh process."""
    stdout, stderr, *named = fds
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(
        request["env"], **{name: str(fd) for name, fd in zip(request["named"], named, strict=True)}
    )
    os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["argv"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def load(modules: Sequence[str]) -> bool:
    """Imports what is there; whether this process is single-threaded still."""
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # nothing above is ever freed: forks need not touch, and so copy, its pages
    return len(os.listdir("/proc/self/task")) == 1


def main(fd: int, preload: list[str]) -> None:
    """The server process."""
    load(preload)
    try:
        request, fds = serve(socket.socket(fileno=fd))
    except (EOFError, ConnectionError):
        os._exit(0)  # the parent is gone; tearing torch down would take most of a second
    become(request, fds)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
