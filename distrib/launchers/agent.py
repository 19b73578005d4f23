"""The agent on one host of a job: ``python -m distrib.launchers.agent``, orders on standard input.

It starts what it is told to, each in a session of its own, passes output and exit codes back, and
leaves nothing behind however the job ends: when its input ends (the launcher or its ssh is gone) or
stays silent (the host is cut off), it kills what it started and whatever else on this host carries the
job's name in its environment, as ranks do that mpirun or horovodrun started here.

One thread, so that nothing can deadlock; a watch that does not depend on ssh, because killing an ssh
client leaves the remote process running.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distrib.launchers.base import Command
from distrib.launchers.job_processes import kill_all, machine
from distrib.launchers.messages import (
    BEAT_SECONDS,
    GREETING,
    SILENCE_SECONDS,
    Message,
    Silence,
    decode,
    encode,
    software,
    to_text,
)
from distrib.launchers.network import interfaces
from distrib.launchers.outbox import Outbox
from distrib.launchers.starting import Files, Process, popen
from distrib.rank_variables import PORT_FD, RANK_VARIABLES
from distrib.signals import LIFELINE

POLL_SECONDS = 0.05
DRAIN_SECONDS = 1.0
"""How long a rank's helpers may hold its output open when it has ended."""
REACH_SECONDS = 5.0


class Rank:
    """One process that the agent started, and the pipes that carry what it writes."""

    def __init__(self, running: Process, pipes: dict[int, str]) -> None:
        self.running = running
        self.pipes = pipes
        """By descriptor, which stream it is."""
        self.ended_at: float | None = None


class Agent:
    """Carries out orders until they end. See the module's docstring."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._outbox = Outbox(reports)
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._ranks: dict[int, Rank] = {}
        self._port: socket.socket | None = None
        self._job: str | None = None
        self._partial = b""
        self._said = time.monotonic()
        self._silence = Silence()
        self._lifeline, self._held = os.pipe()

    def run(self) -> None:
        """Until the launcher is gone; then nothing of the job is left on this host."""
        try:
            self._greet()
            while self._turn():
                pass
        except (BrokenPipeError, ConnectionError):
            pass  # the launcher is gone: the same end as that of its orders
        finally:
            self._end()

    def _greet(self) -> None:
        hello = {
            "hello": {
                "host": socket.gethostname(),
                "machine": machine(),
                "software": dict(software()),
                "interfaces": [asdict(each) for each in interfaces()],
            }
        }
        self._outbox.put(GREETING + encode(hello))

    def _turn(self) -> bool:
        """One round: what is there to read, who has ended, a sign of life. False: it is over."""
        pace = POLL_SECONDS if self._ranks or self._outbox.waiting else BEAT_SECONDS / 2
        for key, _ in self._selector.select(pace):
            if key.fd == self._orders:
                if not self._read_orders():
                    return False
            elif not self._outbox.is_full:
                self._read_output(key.fd, *key.data)
        self._report_exits()
        if time.monotonic() - self._said > BEAT_SECONDS:
            self._say({"beat": 1})
        self._outbox.flush()
        if self._silence.is_too_long():
            print(f"nothing was heard from the launcher for {SILENCE_SECONDS:g} s", file=sys.stderr)
            return False
        return True

    def _say(self, message: Message) -> None:
        self._said = time.monotonic()
        self._outbox.put(encode(message))

    def _read_orders(self) -> bool:
        data = os.read(self._orders, 1 << 16)
        self._silence.broken()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            for name, value in decode(line).items():
                getattr(self, f"_on_{name}")(value)
        return bool(data)

    def _on_beat(self, _: int) -> None:
        """Only says that the launcher is there."""

    def _on_job(self, name: str) -> None:
        self._job = name

    def _on_look(self, look: dict[str, str]) -> None:
        """Whether this host sees the run's folder as the launcher's host does."""
        folder, file, text = Path(look["cwd"]), Path(look["file"]), look["text"]
        same = False
        with contextlib.suppress(OSError, UnicodeDecodeError):
            same = file.read_text(encoding="utf-8") == text
        self._say({"answer": {"cwd": folder.is_dir(), "file": same}})

    def _on_bind(self, address: str) -> None:
        """Takes a free port for rank 0, and listens so that the other hosts can try it."""
        try:
            self._port = socket.create_server((address, 0), backlog=1024)
        except OSError as error:
            self._say({"answer": {"error": f"{address}: {error.strerror}"}})
        else:
            self._say({"answer": {"port": self._port.getsockname()[1]}})

    def _on_free(self, _: int) -> None:
        """Gives the port back: a launcher that cannot inherit a socket takes it by number."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def _on_reach(self, where: list[Any]) -> None:
        try:
            socket.create_connection((where[0], where[1]), timeout=REACH_SECONDS).close()
        except OSError as error:
            self._say({"answer": {"error": error.strerror or str(error)}})
        else:
            self._say({"answer": {}})

    def _on_start(self, order: dict[str, Any]) -> None:
        """Starts one process; one that cannot be started ends at once, as in a shell, with 127."""
        try:
            self._start(order)
        except OSError as error:
            words = f"cannot start {order['argv'][0]} in {order['cwd']}: {error.strerror}\n"
            self._say({"output": [order["rank"], "stderr", words]})
            self._say({"exit": [order["rank"], 127]})

    def _start(self, order: dict[str, Any]) -> None:
        (out, stdout), (err, stderr) = os.pipe(), os.pipe()
        files = {LIFELINE: self._lifeline}
        if self._port is not None:
            files[PORT_FD] = self._port.fileno()
        named = {name: fd for name, fd in files.items() if name in order["inherits"]}
        command = Command(argv=tuple(order["argv"]), env=order["env"], rank=order["rank"])
        try:
            os.chdir(order["cwd"])
            running = popen(command, Files(stdout=stdout, stderr=stderr, named=named))
        except OSError:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(stdout)
            os.close(stderr)
        rank = self._ranks[command.rank] = Rank(running, {out: "stdout", err: "stderr"})
        for fd, stream in rank.pipes.items():
            self._selector.register(fd, selectors.EVENT_READ, (command.rank, stream))

    def _on_signal(self, order: list[Any]) -> None:
        rank, number, to_group = order
        member = self._ranks.get(rank)
        if member is not None:
            member.running.send(signal.Signals(number), to_group=to_group)

    def _read_output(self, fd: int, rank: int, stream: str) -> None:
        if data := os.read(fd, 1 << 15):
            self._say({"output": [rank, stream, to_text(data)]})
            return
        self._selector.unregister(fd)
        os.close(fd)
        del self._ranks[rank].pipes[fd]

    def _report_exits(self) -> None:
        """Says who has ended, once all that it wrote is passed on."""
        for number, rank in list(self._ranks.items()):
            code = rank.running.poll()
            if code is None:
                continue
            rank.ended_at = rank.ended_at or time.monotonic()
            if rank.pipes and time.monotonic() - rank.ended_at < DRAIN_SECONDS:
                continue
            rank.running.send(signal.SIGKILL, to_group=True)  # what it left behind
            for fd in rank.pipes:
                self._selector.unregister(fd)
                os.close(fd)
            del self._ranks[number]
            self._say({"exit": [number, code]})

    def _end(self) -> None:
        kill_all([rank.running.pid for rank in self._ranks.values()], job=self._job)
        for rank in self._ranks.values():
            while rank.running.poll() is None:
                time.sleep(0.01)


def main() -> None:
    """Takes standard input and output for itself, so that nothing else can write between the lines."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # The end of its orders is what ends an agent. No SIG_IGN: that, its ranks would inherit.
        signal.signal(number, lambda number, frame: None)
    orders, reports = os.dup(0), os.dup(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    Agent(orders, reports).run()


if __name__ == "__main__":
    main()
    sys.exit(0)
