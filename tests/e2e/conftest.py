"""What several modules compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import TINY, distrib


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `TINY` on one process."""
    folder = tmp_path_factory.mktemp("one_process")
    distrib("train", *TINY, "strategy=single", "run_dir=run", cwd=folder)
    return folder / "run"
