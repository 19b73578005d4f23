"""Horovod's MPI controller for real: `horovodrun --mpi`, and Adasum, which nothing else has.

Needs mpirun and the wheel that `HOROVOD_WITH_MPI=1 .ci/horovod PYTHON` leaves in the cache. It is unpacked
beside the installed one, so that an environment with the gloo build can run this too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from runs import LIMIT_SECONDS, TINY, command, environment, losses, summary

from distrib.testing.proof import Proof, global_batch, job_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.full]

WHEELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distrib" / "wheels"
"""Read before the tests are given a cache of their own."""
FOUND = sorted(WHEELS.glob(f"*-mpi-torch-{torch.__version__}-{sys.implementation.cache_tag}-*/horovod-*.whl"))
SCRIPT = """
import json, sys
from distrib.strategies.horovod.strategy import Horovod
from distrib.testing.proof import Proof, global_batch, job_for
from distrib.world import World

strategy = Horovod(op="adasum")
proof = Proof(strategy={}, global_batch_size=8, microbatch_size=8 // World.from_env().size)
strategy.setup(job_for(proof), World.from_env())
result = strategy.train_step(strategy.shard.take(global_batch(proof, 0)), 0)
with open(f"{sys.argv[1]}/{strategy.shard.index}", "w") as file:
    json.dump(float(result.grad_norm), file)
strategy.close()
"""


@pytest.fixture(scope="module")
def with_mpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, first in the path, makes Horovod the build with MPI."""
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun: apt-get install openmpi-bin libopenmpi-dev")
    if not FOUND:
        pytest.skip("no Horovod with MPI for this torch: HOROVOD_WITH_MPI=1 .ci/horovod PYTHON builds it")
    folder = tmp_path_factory.mktemp("horovod-mpi")
    zipfile.ZipFile(FOUND[0]).extractall(folder)
    return folder


def horovodrun(with_mpi: Path, argv: Sequence[str], *, size: int, cwd: Path) -> None:
    """Runs ``argv`` on ``size`` ranks that MPI coordinates."""
    launcher = ["-m", "horovod.runner.launch", "--mpi", "-np", str(size)]
    path = os.pathsep.join([str(with_mpi), environment()["PYTHONPATH"]])
    more = ["--mpi-args=--mca mpi_yield_when_idle 1"]  # more ranks than cores
    done = subprocess.run(
        [sys.executable, *launcher, *more, *argv],
        cwd=cwd,
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mpi_gives_the_one_process_run(with_mpi: Path, tmp_path: Path, one_process: Path) -> None:
    """Started by horovodrun --mpi on 2 processes: one process's losses, and a timeline of the gradients."""
    settings = ("strategy=horovod", "strategy.timeline=true", "run_dir=run")
    horovodrun(with_mpi, command("train", *TINY, *settings), size=2, cwd=tmp_path)
    run = tmp_path / "run"
    assert losses(run) == pytest.approx(losses(one_process), abs=1e-5, rel=0)
    assert (summary(run)["strategy"], summary(run)["world_size"]) == ("horovod", 2)
    events = {event.get("name") for event in timeline(run)}
    assert {"NEGOTIATE_ALLREDUCE", "MPI_ALLREDUCE"} <= events


def timeline(run: Path) -> list[dict[str, object]]:
    """Horovod leaves the list of events open at its end."""
    text = (run / "logs" / "horovod-timeline.json").read_text().rstrip().rstrip(",")
    events: list[dict[str, object]] = json.loads(text.removesuffix("]") + "]")
    return events


@pytest.mark.parametrize("size", [2, 4])
def test_adasum_is_that_of_the_paper(with_mpi: Path, tmp_path: Path, size: int) -> None:
    """The gradient's norm is that of pairs of ranks combined, tensor by tensor, by the paper's equation."""
    script = tmp_path / "adasum.py"
    script.write_text(SCRIPT)
    horovodrun(with_mpi, [sys.executable, str(script), str(tmp_path)], size=size, cwd=tmp_path)
    norms = [float((tmp_path / str(rank)).read_text()) for rank in range(size)]
    assert norms == [pytest.approx(expected_norm(size), rel=1e-9)] * size


def expected_norm(size: int) -> float:
    """In this process, from each rank's gradient by itself."""
    proof = Proof(strategy={}, global_batch_size=8, microbatch_size=8 // size)
    gradients = [gradient_of_rank(proof, rank, size=size) for rank in range(size)]
    while len(gradients) > 1:
        pairs = zip(gradients[::2], gradients[1::2], strict=True)
        gradients = [[adasum(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]
    return float(torch.stack([g.norm() for g in gradients[0]]).norm())


def gradient_of_rank(proof: Proof, rank: int, *, size: int) -> list[torch.Tensor]:
    from distrib.parallel.accumulate import accumulate

    job = job_for(proof)
    model = job.build_model()
    mine = [global_batch(proof, 0)[rank]]
    accumulate(model, mine, job=job, step=0, device=torch.device("cpu"), factor=float(size))
    return [p.grad for p in model.parameters() if p.grad is not None]


def adasum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Maleki et al. 2020 (arXiv:2006.02924), equation 3."""
    dot = (a * b).sum()
    result: torch.Tensor = (1 - dot / (2 * a.square().sum())) * a + (1 - dot / (2 * b.square().sum())) * b
    return result
