"""What a step costs against theory: bytes on the wire, counted by the kernel, and bytes that are held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.engines import CASES, build_model, job, strategy_of, train
from benchmarks.memory import live_bytes, watched
from distrib.testing.workers import Workers
from distrib.world import World

ROOT = Path(__file__).parents[2]
WIDTH = 128

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from benchmarks.common import Variant, run

name = sys.argv[1]
ranks = run(Variant(name=name, arguments=["-m", "benchmarks.traffic", "--worker", name], num_processes=2))
print(json.dumps(ranks[0]))
"""


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "most"), [("ddp", 2.04), ("fsdp", 3.06), ("fsdp-keep", 2.04)])
def test_a_step_sends_little_more_than_the_least(name: str, most: float) -> None:
    """At most 1.02 times what theory asks for, and not so little that it was not counted."""
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    run = subprocess.run(
        [*alone, sys.executable, "-c", RUN, name], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr[-2000:]
    units = json.loads(run.stdout.splitlines()[-1])["units"]
    assert 1.98 <= units <= most


def live_bytes_per_parameter(world: World, name: str) -> float:
    """After the second backward, when the optimizer has state; what earlier tests left does not count."""
    before = live_bytes()
    case, live = CASES[name], list[int]()
    recipes = job(size=world.size, precision=case.precision, width=WIDTH)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_model(WIDTH).parameters())
    with strategy_of(case, world, job=watched(recipes, live)) as strategy:
        train(strategy, first=0, steps=2)
    return (live[-1] - before) / count


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["fsdp", "fsdp-keep", "ddp"])
def test_what_a_rank_holds_after_backward(workers: Workers, name: str, size: int) -> None:
    """Weight, gradient and two moments: 16 bytes per parameter, which FSDP shares out, within 2 %."""
    expected = CASES[name].live_bytes(size)
    for seen in workers.run(live_bytes_per_parameter, name, size=size):
        assert seen == pytest.approx(expected, rel=0.02)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("zero1", marks=pytest.mark.full),
        pytest.param("zero2", marks=pytest.mark.full),
        "zero3-lean",
    ],
)
def test_what_deepspeed_holds_after_backward(workers: Workers, name: str) -> None:
    """Its master copy in fp32 on top; within 2 %."""
    expected = CASES[name].live_bytes(4)
    for seen in workers.run(live_bytes_per_parameter, name, size=4):
        assert seen == pytest.approx(expected, rel=0.02)
