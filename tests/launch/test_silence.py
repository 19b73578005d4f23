"""A launcher and its agents give each other up when nothing is heard, and only then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from distrib.launchers.messages import BEAT_SECONDS, GREETING, SILENCE_SECONDS, Silence, encode

pytestmark = pytest.mark.timeout(60)

BEAT, LIMIT = 0.1, 0.75
AGENT = f"""
from distrib.launchers import messages
messages.BEAT_SECONDS, messages.SILENCE_SECONDS = {BEAT}, {LIMIT}
from distrib.launchers import agent
agent.main()
"""
"""An agent in a hurry: it gives up after less than a second."""


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Spoken:
    """An agent, and a launcher that beats until it is told to be quiet."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.orders, self.reports = self.process.stdin, self.process.stdout
        assert self.reports.readline().startswith(GREETING)
        self.quiet = threading.Event()
        self.beats = threading.Thread(target=self._beat)
        self.beats.start()

    def _beat(self) -> None:
        while not self.quiet.wait(BEAT):
            self.say({"beat": 1})

    def say(self, message: dict[str, object]) -> None:
        """One order; none where the agent has ended."""
        try:
            os.write(self.orders.fileno(), encode(message))
        except BrokenPipeError:
            self.quiet.set()

    def port(self) -> int:
        """What it answers when it is asked for a port."""
        self.say({"bind": "127.0.0.1"})
        for line in self.reports:
            if "answer" in (said := json.loads(line)):
                return int(said["answer"]["port"])
        raise AssertionError(f"it ended: {self.words()}")

    def words(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@pytest.fixture
def agent() -> Iterator[Spoken]:
    spoken = Spoken()
    try:
        yield spoken
    finally:
        spoken.quiet.set()
        spoken.beats.join()
        spoken.process.kill()
        spoken.process.communicate()


@pytest.mark.slow
def test_an_agent_that_was_stopped_does_not_take_its_own_pause_for_the_launchers(agent: Spoken) -> None:
    """Starved by others, or stopped and woken: the launcher's beats are there to be read."""
    for _ in range(3):
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * LIMIT)
        agent.process.send_signal(signal.SIGCONT)
        time.sleep(2 * BEAT)
    assert agent.port() > 0


def test_an_agent_whose_launcher_is_silent_says_so_and_ends(agent: Spoken) -> None:
    assert agent.port() > 0
    agent.quiet.set()
    since = time.monotonic()
    assert agent.process.wait(20) == 0
    assert time.monotonic() - since > LIMIT - 2 * BEAT
    assert agent.words() == f"nothing was heard from the launcher for {LIMIT:g} s\n"


def test_silence_is_counted_while_awake() -> None:
    clock = Clock()
    silence = Silence(clock)
    clock.now += 100 * SILENCE_SECONDS  # asleep
    assert not silence.is_too_long()
    for _ in range(int(SILENCE_SECONDS / BEAT_SECONDS) - 1):
        clock.now += BEAT_SECONDS
        assert not silence.is_too_long()
    clock.now += BEAT_SECONDS
    assert silence.is_too_long()
    silence.broken()
    assert not silence.is_too_long()
