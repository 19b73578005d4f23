"""What holds for every test: nothing is downloaded, one thread a process, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

# Before torch or a Hugging Face library is imported by any test module: they read these once.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import psutil
import pytest

pytest_plugins = ["pytester"]

T = TypeVar("T")

GRACE_SECONDS = 3.0
"""How long a process or thread that was told to end may take to do so."""
LASTING_THREADS = ("tqdm_monitor",)
"""Daemons that a library starts once per process, on first use."""
LASTING_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Helpers that the standard library starts once per process, on first use."""
LIBRARY_VARIABLES = ("PYTEST_", "KMP_", "TORCH", "TRITON_", "WANDB_", "TF_", "GRPC_")
"""Beginnings of variables that pytest, or an imported library, sets for its own process."""


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded data goes to a folder of this test run: the user's cache is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def lasting_processes() -> set[int]:
    """Numbers of processes that outlast a test on purpose, and what runs below them; who adds one ends it."""
    return set()


@pytest.fixture(autouse=True)
def nothing_left_behind(own_cache: None, lasting_processes: set[int]) -> Iterator[None]:
    """Fails the test that leaves a process, thread, variable, directory change or process group behind."""
    processes, threads, variables, folder = children(), lasting_threads(), environment(), Path.cwd()
    yield
    leaks = [
        *close_process_group(),
        *(end(process) for process in settled(lambda: outside(lasting_processes, children() - processes))),
        *(f"thread {thread.name}" for thread in settled(lambda: lasting_threads() - threads)),
        *(f"variable {name}" for name in restore(variables)),
    ]
    if Path.cwd() != folder:
        leaks.append(f"working directory {Path.cwd()}")
        os.chdir(folder)
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


def settled(leaked: Callable[[], set[T]]) -> set[T]:
    """What is still leaked when the time of grace is over."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := leaked()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def children() -> set[psutil.Process]:
    """Processes below this one that are still at work."""
    if is_childless():
        return set()
    found = psutil.Process().children(recursive=True)
    return {child for child in found if is_at_work(child)}


def is_childless() -> bool:
    """Whether the kernel says that this process has no child: 0.1 ms, where looking at all takes 2.4."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    return bool(lists) and not any(file.read_text() for file in lists)


def outside(lasting: set[int], processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that are not below any of ``lasting``, and still there."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if lasting.isdisjoint([process.pid, *(above.pid for above in process.parents())]):
                found.add(process)
    return found


def is_at_work(process: psutil.Process) -> bool:
    """Whether it still runs (a zombie does not) and is none of the standard library's helpers."""
    try:
        command = " ".join(process.cmdline())
        helper = any(name in command for name in LASTING_PROCESSES)
        return not helper and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process: psutil.Process) -> str:
    """Kills a leaked process by its number and says what it was."""
    try:
        text = f"process {process.pid}: {' '.join(process.cmdline())[:200]}"
        process.kill()
    except psutil.NoSuchProcess:
        text = f"process {process.pid}, gone meanwhile"
    return text


def lasting_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(LASTING_THREADS)}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(LIBRARY_VARIABLES)}


def restore(before: dict[str, str]) -> list[str]:
    """Sets changed variables back and returns their names."""
    after = environment()
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    for name in changed:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    return sorted(changed)


def close_process_group() -> list[str]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return []
    distributed.destroy_process_group()
    return ["an open torch process group"]
