"""`distrib compare` with real processes: what it counts is what the arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import distrib

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """DDP, FSDP and one that fails on 2 processes, and one process, one round each."""
    folder = tmp_path_factory.mktemp("compare")
    words = ("experiment=tiny", "strategies=ddp,fsdp,single,fails", "steps=6", "repeats=1", "run_dir=out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS))
        done = distrib("compare", *words, "--config-dir", str(PLUGINS / "conf"), cwd=folder)
    record = json.loads((folder / "out" / "compare.json").read_text())
    assert (folder / "out" / "report.html").stat().st_size > 0
    return {"text": done.stdout, **{line["strategy"]: line for line in record["strategies"]}}


def weight_bytes(found: dict[str, Any]) -> int:
    size: int = found["single"]["samples"][0]["memory"]["parameters"]
    return size


def test_bytes_sent_are_those_of_a_ring(found: dict[str, Any]) -> None:
    """DDP on two ranks sends 2 (N-1)/N of the gradients' bytes, here once their size; one process nothing."""
    assert found["ddp"]["samples"][0]["sent"] == pytest.approx(weight_bytes(found), rel=0.02)
    assert found["single"]["samples"][0]["sent"] == 0


def test_memory_is_what_each_strategy_promises(found: dict[str, Any]) -> None:
    """DDP holds everything whole, FSDP half of it on two ranks; Adam keeps two numbers a weight."""
    size = weight_bytes(found)
    for strategy, share in (("single", 1.0), ("ddp", 1.0), ("fsdp", 0.5)):
        memory = found[strategy]["samples"][0]["memory"]
        assert memory["parameters"] == pytest.approx(share * size, rel=0.02), strategy
        assert memory["gradients"] == pytest.approx(share * size, rel=0.02), strategy
        assert memory["optimizer"] == pytest.approx(2 * share * size, rel=0.02), strategy
        assert memory["activations"] > 0


def test_all_reach_the_same_loss_in_steps_that_were_timed(found: dict[str, Any]) -> None:
    """The stopwatch and the watch on memory leave the result as it is."""
    losses = [found[name]["samples"][0]["loss"] for name in ("single", "ddp", "fsdp")]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    assert [len(found[name]["samples"][0]["seconds"]) for name in ("single", "ddp", "fsdp")] == [4] * 3


def test_a_failure_is_told_and_does_not_stop_the_rest(found: dict[str, Any]) -> None:
    """Its row says that it failed, the line below why."""
    assert found["fails"]["samples"] == []
    assert "this strategy was made to fail" in found["fails"]["failure"]
    assert "this strategy was made to fail" in found["text"]
    assert "fastest here: " in found["text"]
