"""The ranks of a job from their start to their end, and which of them brought the end about.

One srun starts them all, or one for each part of the job (`distrib.launchers.slurm.parts`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from distrib.launchers.failure import PEER_LOST, TAIL_LINES, Death, first_cause
from distrib.launchers.slurm.place import Part
from distrib.launchers.slurm.script import Work
from distrib.launchers.supervise import CAUSE_SECONDS

POLL_SECONDS = 0.2

Line = tuple[Part, str | None]
"""What the srun of a part wrote; None: its end."""

DIED = re.compile(r"srun: error: \S+: tasks? (?P<ranks>[\d,-]+): (?P<how>.+)")
EXITED = re.compile(r"Exited with exit code (\d+)")
NODE_LOST = re.compile(r"srun: error: Node failure on (?P<nodes>\S+)")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a step ended."""

    code: int
    """0, the exit code of the rank that failed first, or srun's own."""
    cause: Death | None
    """The rank that failed first; None where srun or a node did."""
    lost_node: bool
    """Ranks only say that they lost another, or SLURM that a node is gone."""
    words: str
    """The last of what srun and SLURM said."""

    def describe(self) -> str:
        """What to show last on screen."""
        if self.cause is None or not self.cause.log.exists():
            return f"srun ended with exit code {self.code}:\n{self.words}"
        return self.cause.describe()


class Step:
    """Runs the ranks of a job inside an allocation, once."""

    def __init__(self, work: Work, *, env: Mapping[str, str]) -> None:
        self._work = work
        self._env = env
        self._processes: list[subprocess.Popen[str]] = []
        self._deaths: list[Death] = []
        self._said: deque[str] = deque(maxlen=TAIL_LINES)
        self._starts: dict[Path, int] = {}
        self._lost_node = False
        self._ended = False

    def run(self) -> Ending:
        """Until every rank has ended. The first failure ends the others."""
        self._starts = {log: log.stat().st_size for log in self._work.logs.glob("rank-*.log")}
        lines: Queue[Line] = Queue()
        with ExitStack() as stack:
            readers = []
            for part in self._work.parts:
                process = stack.enter_context(self._start(part))
                self._processes.append(process)
                readers.append(threading.Thread(target=_read, args=(process.stderr, part, lines)))
                readers[-1].start()
            self._watch(lines)
            for reader in readers:
                reader.join()
            self._close_inputs()
            codes = [process.wait() for process in self._processes]
        return self._ending(next((code for code in codes if code), 0))

    def tell(self, number: signal.Signals) -> None:
        """Gives every rank a signal: the ranks alone, not what they have started."""
        for process in self._processes:
            with contextlib.suppress(OSError, ValueError):  # its step has ended meanwhile
                # Unbuffered: this runs in a signal's handler, which may have interrupted another one.
                os.write(process.stdin.fileno(), f"{number.name}\n".encode())  # type: ignore[union-attr]

    def end(self) -> None:
        """Kills all ranks and what they started. srun does so at a SIGTERM."""
        self._ended = True
        for process in self._processes:
            process.terminate()

    def _start(self, part: Part) -> subprocess.Popen[str]:
        return subprocess.Popen(
            part.srun,
            env={**self._env, **part.env},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # the terminal's Ctrl-C is this process's to pass on
        )

    def _watch(self, lines: Queue[Line]) -> None:
        running = len(self._processes)
        while running:
            try:
                part, line = lines.get(timeout=POLL_SECONDS)
                running -= line is None
                if line is not None:
                    self._note(line, part)
            except Empty:
                pass
            if self._deaths and not self._ended and self._cause_is_known():
                self.end()

    def _note(self, line: str, part: Part) -> None:
        """Shows a line, and keeps what it says about ranks until the step is ended by us."""
        sys.stderr.write(line)
        sys.stderr.flush()
        self._said.append(line)
        self._lost_node = self._lost_node or NODE_LOST.search(line) is not None
        if not self._ended:
            self._deaths += [
                death for death in self._deaths_in(line, part) if death.rank not in self._work.expendable
            ]

    def _deaths_in(self, line: str, part: Part) -> Iterator[Death]:
        match = DIED.search(line)
        for task in ranks_of(match["ranks"]) if match else ():
            rank = part.first_rank + task
            log = self._work.logs / f"rank-{rank}.log"
            yield Death(
                rank=rank,
                code=code_of(match["how"]) if match else 1,
                seen_at=time.monotonic(),
                log=log,
                log_start=self._starts.get(log, 0),
            )

    def _cause_is_known(self) -> bool:
        cause = first_cause(self._deaths)
        return cause.code != PEER_LOST or time.monotonic() - cause.seen_at > CAUSE_SECONDS

    def _close_inputs(self) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]

    def _ending(self, code: int) -> Ending:
        cause = first_cause(self._deaths) if self._deaths else None
        return Ending(
            code=cause.exit_code if cause else self._srun_code(code),
            cause=cause,
            lost_node=self._lost_node or (cause is not None and cause.code == PEER_LOST),
            words="".join(self._said).strip(),
        )

    def _srun_code(self, code: int) -> int:
        """srun's own exit code, unless it is that of a rank which the job does without."""
        expected = self._work.expendable and not self._lost_node and not self._ended
        return 0 if expected else 128 - code if code < 0 else code


def _read(stream: IO[str], part: Part, lines: Queue[Line]) -> None:
    for line in stream:
        lines.put((part, line))
    lines.put((part, None))


def ranks_of(text: str) -> Iterable[int]:
    """``0,2-3`` as 0, 2, 3."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def code_of(how: str) -> int:
    """An exit code, or minus a signal's number, from srun's words for how a rank ended."""
    exited = EXITED.match(how)
    if exited:
        return int(exited[1])
    words = how.removesuffix(" (core dumped)")
    if words == "Out Of Memory":
        return -signal.SIGKILL
    named = {signal.strsignal(number): -int(number) for number in signal.valid_signals()}
    return named.get(words, 1)
