"""`distrib verify` with real processes: strategies that are right pass, one that is wrong is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import distrib

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.mark.full
def test_right_strategies_pass(tmp_path: Path) -> None:
    """DDP and FSDP on 3 processes, dropout on, uneven microbatches: exit 0, every number within its bound."""
    words = ("experiment=tiny", "strategies=ddp,fsdp", "world_sizes=3", "steps=5", "run_dir=out")
    done = distrib("verify", *words, cwd=tmp_path)
    record = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert [(row["strategy"], row["verdict"]) for row in record["rows"]] == [
        ("ddp", "same"),
        ("fsdp", "same"),
    ]
    for row in record["rows"]:
        assert row["loss"] <= 1e-5
        assert row["weights"] <= 5e-4
    assert record["rounding"]["weights"] > 0
    assert done.stdout.index("8 x Dropout(p=0.1)") < done.stdout.index("reference: 1 process")
    assert "every run is the one-process run" in done.stdout
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 3
    assert not list((tmp_path / "out").glob("*/checkpoints"))


def test_a_wrong_strategy_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dividing by local targets: exit 1, and the first step and a parameter are named."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    words = ("experiment=tiny", "strategies=local_mean,fails,not_installed", "world_sizes=2", "steps=4")
    config = ("--config-dir", str(PLUGINS / "conf"))
    done = distrib("verify", *words, *config, "run_dir=out", cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    wrong, failing, absent = json.loads((tmp_path / "out" / "verify.json").read_text())["rows"]
    assert wrong["verdict"] == "differs"
    assert "grad_norm" in wrong["broken"]
    assert wrong["place"].startswith("first differs after step 1:")
    assert "classifier." in wrong["place"]
    assert (failing["verdict"], absent["verdict"]) == ("failed", "cannot run")
    assert "RuntimeError: this strategy was made to fail" in failing["message"]
    assert "'warpdrive', which is not installed" in absent["message"]
    assert "not_installed was asked for and ran nowhere" in done.stdout
    assert wrong["place"] in done.stdout.replace("\n", "")
