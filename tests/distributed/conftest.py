"""Worker processes shared by the whole suite of proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distrib.testing.workers import Workers

NUM_WORKERS = 4


@pytest.fixture(scope="session")
def shelf() -> Iterator[list[Workers]]:
    """The one set of workers in use."""
    shelf: list[Workers] = []
    yield shelf
    for workers in shelf:
        workers.close()


@pytest.fixture
def workers(shelf: list[Workers]) -> Workers:
    """Four processes, of which a test uses as many as it asks for; new ones after a failure ended them."""
    if not shelf or not shelf[-1].alive:
        shelf.append(Workers(NUM_WORKERS))
    return shelf[-1]


@pytest.fixture(autouse=True)
def nothing_left_behind(workers: Workers, nothing_left_behind: None) -> None:
    """The check of all tests, made when the workers are there already: they are no test's leak."""
