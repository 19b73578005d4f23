"""TensorBoard, Weights & Biases and the fan-out to several trackers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from synthetic import info, record, write_run

from distrib.errors import MissingDependencyError
from distrib.tracking import tensorboard, wandb
from distrib.tracking.base import NullTracker
from distrib.tracking.several import Several, trackers_of_a_run
from distrib.tracking.tensorboard import TensorBoard
from distrib.tracking.wandb import WandB, has_key


class Recorder(NullTracker):
    """Remembers which methods were called."""

    def __init__(self, calls: list[str], name: str, *, fails: bool = False) -> None:
        self.calls, self.name, self.fails = calls, name, fails

    def step(self, record: Any) -> None:
        self.calls.append(f"{self.name} step {record['step']}")

    def close(self) -> None:
        self.calls.append(f"{self.name} close")
        if self.fails:
            raise OSError(self.name)


def test_several_hands_on_and_closes_all() -> None:
    """Each tracker is told everything in order; one that fails to close does not keep another open."""
    calls: list[str] = []
    several = Several([Recorder(calls, "a", fails=True), Recorder(calls, "b")])
    several.step(record(1))
    with pytest.raises(OSError, match="a"):
        several.close()
    assert calls == ["a step 1", "b step 1", "a close", "b close"]


def test_a_run_leaves_its_files_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trackers that every run has: metrics, summary, log and page are there, and named on screen."""
    trackers = trackers_of_a_run()
    trackers.check()
    write_run(trackers, info(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "run.json", "summary.json", "evaluation.json", "report.html", "logs"}
    assert "report.html" in capsys.readouterr().out


def test_a_failed_run_has_a_page_too(tmp_path: Path) -> None:
    """`close` without `finish`, as after an error: the page shows how far it came."""
    trackers = trackers_of_a_run()
    write_run(trackers, info(tmp_path), last=7)
    trackers.close()
    assert "not finished · 7 of 40 steps" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("module", "tracker"), [(tensorboard, TensorBoard()), (wandb, WandB())])
def test_a_missing_package_names_its_extra(
    module: Any, tracker: TensorBoard | WandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` refuses before the run starts, and says what to install."""
    tracker.check()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'distrib\[tracking\]'"):
        tracker.check()


def scalars(run_dir: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    """Losses and metrics are in the event files; a resumed run replaces the steps it goes over again."""
    board = TensorBoard()
    write_run(board, info(tmp_path))
    resumed = TensorBoard()
    resumed.start(info(tmp_path, first_step=25))
    for step in range(26, 31):
        resumed.step(record(step, loss=7.0))
    resumed.close()

    loss = scalars(tmp_path, "train/loss")
    assert sorted(loss) == list(range(1, 31))
    assert loss[25] == pytest.approx(record(25)["loss"])
    assert loss[26] == 7.0
    assert scalars(tmp_path, "train/examples_per_second")[3] == pytest.approx(64)
    assert scalars(tmp_path, "eval/accuracy") == {20: pytest.approx(0.4)}


def test_a_wandb_key_is_found_where_wandb_looks(tmp_path: Path) -> None:
    """In the environment or as a login in the netrc file of the server in use; nowhere else."""
    netrc = tmp_path / "netrc"
    environ = {"NETRC": str(netrc)}
    assert not has_key(environ)
    netrc.write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    assert has_key(environ)
    assert not has_key({**environ, "WANDB_BASE_URL": "https://wandb.example.org"})
    assert has_key({"WANDB_API_KEY": "0123"})


WANDB_RUN = """
import sys
from pathlib import Path
from synthetic import info, write_run
from distrib.tracking.base import SweepInfo
from distrib.tracking.wandb import WandB

for first in (0, 20):
    tracker = WandB(mode=sys.argv[2] or None, patience=2.0)
    config = {"data": {"api_key": "s3cr3t-value"}}
    write_run(tracker, info(Path(sys.argv[1]), first_step=first, config=config))
root = Path(sys.argv[1], "sweep")
root.mkdir()
rows = [{"trial": n, "optimizer.lr": 0.5, "accuracy": value} for n, value in enumerate((0.25, None))]
tracker.sweep(SweepInfo(name="the-group", root=root, metric="accuracy", config=config, trials=rows,
                        summary={"best/accuracy": 0.25}))
"""


def run_wandb(run_dir: Path, *, mode: str, **environ: str) -> tuple[float, str]:
    """Two runs in a process of their own, as wandb keeps a helper process; its seconds and stderr."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    variables = {
        **clean,
        "PYTHONPATH": os.pathsep.join(paths),
        "NETRC": str(run_dir / "no-netrc"),
        "HOME": str(run_dir),
        "WANDB_ERROR_REPORTING": "false",
        **environ,
    }
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(run_dir), mode],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begin, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_wandb_without_a_key_is_offline_under_one_id(tmp_path: Path) -> None:
    """Without a key both attempts are kept for ``wandb sync``, under the run directory's id, no secrets."""
    run_wandb(tmp_path, mode="")
    kept = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert len({path.stem for path in kept}) == 1
    assert kept[0].stem.removeprefix("run-") in (tmp_path / "wandb.json").read_text()
    (folder,) = (tmp_path / "sweep" / "wandb").glob("offline-run-*")
    (sweep,) = folder.glob("run-*.wandb")
    assert all(word in sweep.read_bytes() for word in (b"the-group", b"best/accuracy"))
    (table,) = folder.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[0, 0.5, 0.25], [1, 0.5, None]]
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"train/loss" in content
    assert b"eval/accuracy" in content
    assert b"s3cr3t-value" not in content


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_wandb_with_a_key_and_no_network_goes_on(tmp_path: Path) -> None:
    """A server out of reach costs seconds, is said, and the run is kept; the key is written nowhere."""
    key = "a1b2" * 10
    _, said = run_wandb(tmp_path, mode="", WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "wandb could not be reached; this run is kept offline" in said
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2
    assert all(key.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
