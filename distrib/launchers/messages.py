"""What a launcher and its agents say to each other: JSON objects, one a line, over pipes or ssh.

To the agent: ``start``, ``signal``, ``bind``, ``reach``, ``look``, ``job``, ``beat``.
From it: ``hello``, ``output``, ``exit``, ``answer``, ``beat``. No line is ever read by a shell.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Message = dict[str, Any]

BEAT_SECONDS = 2.0
"""Between two signs of life, in both directions."""
SILENCE_SECONDS = 15.0
"""Without a sign of life for this long, the other side is gone: cut off, or stopped."""

GREETING = b"distrib-agent "
"""Begins the agent's first line, which a login shell's own output may stand before."""


class Silence:
    """How long nothing was heard from the other side, as far as this side was awake to hear it.

    A side that was itself stopped or starved for longer than the other's beat counts one beat only: what came
    meanwhile waits in the pipe, and is read before the next one counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self._seconds = 0.0

    def broken(self) -> None:
        """Something was heard."""
        self._seconds = 0.0

    def is_too_long(self) -> bool:
        """Whether the other side is gone; to be asked at least once a beat."""
        now = self._clock()
        self._seconds += min(now - self._looked, BEAT_SECONDS)
        self._looked = now
        return self._seconds > SILENCE_SECONDS


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The opposite. Raises `ValueError` for a line that is no object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message


def to_text(data: bytes) -> str:
    """Bytes of a rank's output, as JSON can hold them, whatever they are."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The opposite."""
    return text.encode("utf-8", "surrogateescape")


@cache
def software() -> Mapping[str, str]:
    """What has to be equal on all hosts of a job."""
    return {
        "distrib": f"{_version('distrib')} (sources {sources()})",
        "torch": _version("torch"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def sources() -> str:
    """A short fingerprint of this package's code: two checkouts of one version may differ."""
    root = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        whole.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return whole.hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
