"""Work ahead of its use gives the same items, its errors surface, and its thread always ends."""

from __future__ import annotations

import threading

import pytest

from distrib.data.prefetch import Prefetcher


def collating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("collate")]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("depth", [0, 1, 2, 5, 50])
def test_items_come_in_order_at_any_depth(depth: int) -> None:
    """However far ahead items are made, they are the same ones in the same order, and none is extra."""
    made: list[int] = []
    prefetcher = Prefetcher(lambda number: made.append(number) or number, depth=depth)
    assert list(prefetcher.items(3, 15)) == made == list(range(3, 15))
    assert list(prefetcher.items(5, 5)) == []
    assert not collating()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_its_item_would_have_come(depth: int) -> None:
    """The items before the one that failed come through; then its error is raised and the thread ends."""

    def fail_at_three(number: int) -> float:
        return 1 / (3 - number)

    items = Prefetcher(fail_at_three, depth=depth).items(0, 10)
    assert [next(items) for _ in range(3)] == [1 / 3, 1 / 2, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert not collating()


@pytest.mark.timeout(20)
def test_leaving_early_ends_the_thread() -> None:
    """A loop that is left after one item, or a prefetcher that is closed, leaves no thread behind."""
    left = Prefetcher(str, depth=2)
    for _ in left.items(0, 1000):
        assert collating()
        break
    left.close()
    assert not collating()
    closed = Prefetcher(str, depth=2)
    items = closed.items(0, 1000)
    next(items)
    closed.close()
    closed.close()
    assert not collating()


@pytest.mark.timeout(20)
def test_no_more_than_the_depth_is_made_ahead() -> None:
    """With depth 2, at most two items wait while one is being used."""
    made: list[int] = []
    prefetcher = Prefetcher(made.append, depth=2)
    items = prefetcher.items(0, 1000)
    for _ in range(3):
        next(items)
    threading.Event().wait(0.1)  # time enough for a thread without a limit to run far ahead
    assert 3 <= len(made) <= 5
    prefetcher.close()


@pytest.mark.timeout(20)
def test_items_are_really_made_ahead() -> None:
    """While one item is in use, the next one is made without being asked for."""
    second = threading.Event()
    prefetcher = Prefetcher(lambda number: number == 1 and second.set(), depth=1)
    items = prefetcher.items(0, 10)
    next(items)
    assert second.wait(10)
    prefetcher.close()
