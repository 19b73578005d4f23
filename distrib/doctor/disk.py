"""Whether all ranks see one run directory, and how fast a checkpoint would be on disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.doctor.network import exchange

if TYPE_CHECKING:
    from distrib.world import World

BYTES = 64 * 2**20
SEEN_SECONDS = 5.0
"""A network file system may show a new file to other hosts this late (NFS keeps attributes for 3 s)."""


def sees_rank_zeros_file(world: World, folder: Path) -> bool:
    """Whether this rank reads what rank 0 has just written into ``folder``. Every rank calls it."""
    file = folder / "shared"
    word = f"{os.getpid()} {time.time()}"
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(word)
    word = exchange(world, "word", word)[0]
    deadline = time.monotonic() + SEEN_SECONDS
    while time.monotonic() < deadline:
        if file.exists() and file.read_text() == word:
            return True
        time.sleep(0.05)
    return False


def write_speed(folder: Path, name: str) -> float:
    """Bytes a second that reach the disk: a file is written, flushed to it and removed. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    part = os.urandom(2**20)  # a file system that compresses must not be fooled by zeros
    try:
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(BYTES // len(part)):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Left on the file system of ``folder``."""
    return shutil.disk_usage(folder).free
