"""The real ``distrib doctor`` on this host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import HERE

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


def doctor(*arguments: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(prefix or (sys.executable,)), "-m", "distrib", "doctor", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_doctor_tries_everything_on_this_host_and_leaves_nothing(tmp_path: Path) -> None:
    """Each installed engine sums over two real ranks; the table, the file and the exit code agree."""
    file = tmp_path / "doctor.json"
    done = doctor("--json", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {(found["area"], found["name"]): found for found in json.loads(file.read_text())}
    assert "fail" not in {found["verdict"] for found in findings.values()}
    assert findings["network", "rendezvous"]["seen"].startswith("2 of 2 ranks met at 127.0.0.1:")
    assert "2 ranks summed 4 MiB" in findings["engines", "torch"]["seen"]
    assert findings["engines", "deepspeed"]["verdict"] in ("ok", "note")
    assert findings["engines", "horovod"]["verdict"] in ("ok", "note")
    assert "flushed at" in findings["disk", "checkpoint speed"]["seen"]
    assert f"{len(findings)} checks: " in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_doctor_runs_under_somebody_elses_launcher(tmp_path: Path) -> None:
    """torchrun's ranks examine themselves; one table, from rank 0."""
    prefix = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = doctor(cwd=tmp_path, prefix=prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" checks: ") == 1


@pytest.mark.full
def test_a_directory_that_cannot_be_written_fails_with_its_remedy(tmp_path: Path) -> None:
    """What is wrong with the place for checkpoints is said before a job needs it."""
    (tmp_path / "file").touch()
    done = doctor(f"run_dir={tmp_path / 'file' / 'runs'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be written to (Not a directory)" in done.stderr
