"""Writing without waiting: a reader that does not read must not stop the writer's watch."""

from __future__ import annotations

import os

LIMIT = 4 << 20
"""Bytes kept for a slow reader before ranks have to wait with their output."""


class Outbox:
    """Lines for a pipe that may be full."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._left = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether anything could not be written yet."""
        return bool(self._left)

    @property
    def is_full(self) -> bool:
        """Whether what produces the lines should pause."""
        return len(self._left) > LIMIT

    def put(self, line: bytes) -> None:
        """Writes what fits and keeps the rest. Raises `BrokenPipeError` where the reader is gone."""
        self._left += line
        self.flush()

    def flush(self) -> None:
        """Writes what fits by now."""
        while self._left:
            try:
                written = os.write(self._fd, self._left[: 1 << 16])
            except BlockingIOError:
                return
            del self._left[:written]
