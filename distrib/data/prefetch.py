"""Work done ahead of its use, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Makes items for consecutive numbers, up to ``depth`` of them before they are asked for."""

    def __init__(self, make: Callable[[int], T], *, depth: int) -> None:
        self._make = make
        self._depth = depth
        self._thread: ThreadPoolExecutor | None = None

    def items(self, first: int, last: int) -> Iterator[T]:
        """Items ``first`` up to but not including ``last``; what ``make`` raises is raised here."""
        if self._depth == 0:
            yield from map(self._make, range(first, last))
            return
        self._thread = thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")
        ahead: deque[Future[T]] = deque()
        try:
            for number in range(first, last + self._depth):
                if number < last:
                    ahead.append(thread.submit(self._make, number))
                if number >= first + self._depth:
                    yield ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Ends the thread; waits for the item it is making, and for nothing else."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
