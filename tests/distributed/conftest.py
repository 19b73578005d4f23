"""Worker processes shared by the whole suite of proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distrib.testing.workers import Workers

NUM_WORKERS = 4


@pytest.fixture(scope="session")
def shelf() -> Iterator[list[Workers]]:
    """The one set of workers in use; started before the first test, so that no test seems to leak them."""
    shelf = [Workers(NUM_WORKERS)]
    yield shelf
    shelf[0].close()


@pytest.fixture
def workers(shelf: list[Workers]) -> Iterator[Workers]:
    """Four processes, of which a test uses as many as it asks for; replaced after a failure ended them."""
    yield shelf[0]
    if not shelf[0].alive:
        shelf[0] = Workers(NUM_WORKERS)
