"""One host of a job, as its launcher sees it: an agent behind a pipe or an ssh connection."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from distrib.errors import LaunchError
from distrib.launchers.base import Command
from distrib.launchers.failure import FAILED
from distrib.launchers.messages import (
    BEAT_SECONDS,
    GREETING,
    SILENCE_SECONDS,
    Message,
    Silence,
    decode,
    encode,
    to_bytes,
)
from distrib.launchers.network import Interface
from distrib.launchers.starting import Files

HOST_LOST = 69
"""The exit code of a rank whose host does not answer any more (EX_UNAVAILABLE of sysexits.h)."""

END_SECONDS = 5.0
"""For an agent to end what is left on its host."""


@dataclass
class Remote:
    """A process that an agent has started; a `Running`."""

    node: Node
    command: Command
    outputs: dict[str, int]
    """Descriptors of ours that its output goes to, by stream."""
    code: int | None = None
    told: bool = False
    """Whether the loss of its host is in its log."""

    def poll(self) -> int | None:
        """As `Running.poll`; `HOST_LOST` where its host is."""
        if self.code is None and self.node.lost is not None:
            self.tell_loss(self.command.host, self.node.lost)
            return HOST_LOST
        return self.code

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """As `Running.send`."""
        self.node.say({"signal": [self.command.rank, int(number), to_group]})

    def write(self, stream: str, data: bytes) -> None:
        """Passes on what it wrote."""
        with contextlib.suppress(OSError):  # nobody reads it any more
            while data:
                data = data[os.write(self.outputs[stream], data) :]

    def close(self) -> None:
        """Lets go of what its output goes to."""
        for fd in self.outputs.values():
            os.close(fd)
        self.outputs.clear()

    def tell_loss(self, host: str, why: str) -> None:
        """Writes its last words for it: that a host was lost."""
        if not self.told and self.outputs:
            self.told = True
            mark = FAILED.format(rank=self.command.rank)
            self.write("stderr", f"{mark}\nhost {host} was lost: {why}\n".encode())


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What an agent says of its host first."""

    host: str
    machine: str
    software: dict[str, str]
    interfaces: list[Interface]


@dataclass
class _Words:
    """What came before the agent's first line, or on standard error: why it did not start."""

    lines: list[str] = field(default_factory=list)

    def last(self) -> str:
        return "\n".join(line for line in self.lines[-8:] if line.strip())


class Node:
    """Starts an agent by ``argv`` and talks to it. A context manager: at its end nothing is left there.

    Args:
        name: of the host, for the user.
        argv: the agent itself, or ssh that starts it.
        screen: where what the agent or ssh says on the way is shown.
    """

    def __init__(self, name: str, argv: Sequence[str], *, screen: Callable[[str], None]) -> None:
        self.name = name
        self.lost: str | None = None
        """Why nothing more can be heard from this host."""
        self._screen = screen
        self._words = _Words()
        self._ranks: dict[int, Remote] = {}
        self._answers: queue.Queue[Message | None] = queue.Queue()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._silence = Silence()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is the launcher's to pass on
        )
        self._threads = [
            threading.Thread(target=run, name=f"{name}-{run.__name__}", daemon=True)
            for run in (self._listen, self._overhear, self._beat)
        ]
        for thread in self._threads:
            thread.start()

    def hello(self, *, timeout: float) -> Hello:
        """What the agent said first. Raises `LaunchError` with ssh's or the host's own words."""
        told = self._next(timeout, waiting_for="its agent to start")["hello"]
        found = [Interface(**each) for each in told["interfaces"]]
        return Hello(**{**told, "interfaces": found})

    def ask(self, message: Message, *, timeout: float = SILENCE_SECONDS) -> Message:
        """The agent's answer. Raises `LaunchError` where it does not come."""
        self.say(message)
        answer: Message = self._next(timeout, waiting_for=f"an answer to {next(iter(message))}")["answer"]
        return answer

    def start(self, command: Command, files: Files, *, cwd: str, inherits: Collection[str] = ()) -> Remote:
        """Starts one process there; what it writes comes back into ``files``.

        Args:
            inherits: variables that name open files of the agent: `LIFELINE`, `PORT_FD`.
        """
        outputs = {"stdout": os.dup(files.stdout), "stderr": os.dup(files.stderr)}
        remote = self._ranks[command.rank] = Remote(node=self, command=command, outputs=outputs)
        order = {"rank": command.rank, "argv": list(command.argv), "env": dict(command.env), "cwd": cwd}
        self.say({"start": {**order, "inherits": list(inherits)}})
        return remote

    def say(self, message: Message) -> None:
        """One order; none where the host is lost."""
        assert self._process.stdin is not None
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends the agent, which ends all that is left on its host; may be called twice."""
        self._closing.set()
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self.lost else END_SECONDS)
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()  # type: ignore[union-attr]
        for remote in self._ranks.values():
            remote.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _next(self, timeout: float, *, waiting_for: str) -> Message:
        try:
            message = self._answers.get(timeout=timeout)
        except queue.Empty:
            message = None
            self.lost = self.lost or f"waited {timeout:g} s for {waiting_for}"
        if message is None:
            self._threads[1].join(1.0)  # what it said last
            words = self._words.last()
            raise LaunchError(f"host {self.name}: {self.lost}" + (f"\n{words}" if words else ""))
        return message

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._greeting_on(self._process.stdout):
                self._silence.broken()
                self._take(decode(line))
        except ValueError as error:
            self._lose(f"what it says cannot be read ({error})")
        finally:
            self._lose(f"its agent ended (exit code {self._process.wait()})")

    def _greeting_on(self, lines: Any) -> Any:
        """The lines from the agent's greeting on; a login shell may have said something before."""
        greeted = False
        for line in lines:
            if not greeted and line.startswith(GREETING):
                greeted, line = True, line.removeprefix(GREETING)
            if greeted:
                yield line
            else:
                self._words.lines.append(line.decode(errors="replace").rstrip())

    def _take(self, message: Message) -> None:
        for name, value in message.items():
            if name == "output":
                rank, stream, text = value
                self._ranks[rank].write(stream, to_bytes(text))
            elif name == "exit":
                self._ranks[value[0]].code = value[1]
            elif name in ("hello", "answer"):
                self._answers.put(message)

    def _overhear(self) -> None:
        """What ssh and the agent say on standard error: kept, and shown once the agent runs."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._words.lines.append(text)
            if self._ranks:
                self._screen(f"[{self.name}] {text}")

    def _beat(self) -> None:
        """Signs of life for the agent; none from it for too long means that the host is lost."""
        while not self._closing.wait(BEAT_SECONDS):
            self.say({"beat": 1})
            if self._silence.is_too_long() and self._ranks:
                self._lose(f"nothing was heard from it for {SILENCE_SECONDS:g} s")
                self._process.kill()  # ssh would wait longer

    def _lose(self, why: str) -> None:
        if not self._closing.is_set():
            self.lost = self.lost or why
        self._answers.put(None)
