"""The page of a sweep in a real browser: lines are drawn, brushes sift, hostile text stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_report_browser import browser, failures, probed, rendered

from distrib.sweeps.page import write_page
from distrib.sweeps.random import Random
from distrib.sweeps.results import Objective, Record, Result
from distrib.sweeps.space import Choice, Interval, Space, Steps

__all__ = ["browser"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SPACE: Space = {
    "optimizer.lr": Interval(low=1e-5, high=1e-1, log=True),
    "train.global_batch_size": Steps(low=16, high=64, step=16),
    "strategy": Choice(words=("ddp", "zero1", "fsdp")),
}
ACCURACY = Objective(metric="accuracy", higher_is_better=True)
DRIVE = """<script>
addEventListener("load", () => {
  const row = document.querySelector("tr[data-trial]");
  row.dispatchEvent(new PointerEvent("pointerenter"));
  const lit = [...document.querySelectorAll(".on")].map((part) => part.tagName + part.dataset.trial);
  document.body.dataset.lit = lit.sort().join(" ");
  const handle = document.querySelector(".handle"), box = handle.getBoundingClientRect();
  const at = (share) => ({ clientX: box.left + 5, clientY: box.top + box.height * share, bubbles: true });
  handle.dispatchEvent(new PointerEvent("pointerdown", at(0)));
  handle.dispatchEvent(new PointerEvent("pointermove", at(0.5)));
  handle.dispatchEvent(new PointerEvent("pointerup", at(0.5)));
  document.body.dataset.sifted = document.querySelectorAll("path.left").length;
  document.body.dataset.rows = document.querySelectorAll("tr.left").length;
  handle.dispatchEvent(new PointerEvent("pointerdown", at(0.5)));
  handle.dispatchEvent(new PointerEvent("pointerup", at(0.5)));
  document.body.dataset.released = document.querySelectorAll(".left").length;
});
</script>"""


def page(folder: Path, *, statuses: Sequence[str] = ("done",), name: str = "news", count: int = 12) -> Path:
    """A sweep's page; the lower the rate, the better the trial."""
    trials = []
    for number, overrides in enumerate(Random(num_trials=count).plan(SPACE)):
        status = statuses[number % len(statuses)]
        value = None if status in ("failed", "waiting") else 1 - 10 * float(overrides[0].partition("=")[2])
        message = f"<b>{name}</b>" if status == "failed" else None
        trials.append(
            Result(
                number=number, overrides=overrides, status=status, metric="accuracy", value=value, steps=9,
                seconds=3.0, message=message,
            )
        )  # fmt: skip
    words = ("experiment=news", f"name={name}", "optimizer.lr=tag(log,interval(1e-5,1e-1))")
    record = Record(name=name, overrides=words, objective=ACCURACY, trials=tuple(trials))
    return write_page(folder, record, space=SPACE)


def test_the_page_works_under_its_own_policy(browser: str, tmp_path: Path) -> None:
    """As shipped, its script allowed by digest alone: a line and a row for each trial, nothing blocked."""
    statuses = ("done", "pruned", "failed", "done", "waiting")
    document = rendered(browser, page(tmp_path, statuses=statuses), profile=tmp_path / "profile")
    lines = re.findall(r'<path class="trial[^>]* d="([^"]*)"', document)
    assert len(lines) == 12 - 2 - 2
    assert all(line.count("C") == len(SPACE) and "NaN" not in line for line in lines)
    assert document.count("<tr data-trial") == 12
    assert document.count('class="trial pruned"') == 3


def test_rows_and_lines_light_up_and_brushes_sift(browser: str, tmp_path: Path) -> None:
    """Pointing at a row marks its line; a brush on an axis keeps what passes there and lets go again."""
    document = rendered(browser, probed(page(tmp_path), DRIVE), profile=tmp_path / "profile")
    assert failures(document) == []
    best = re.search(r'<tr data-trial="(\d+)"', document)
    assert best is not None
    assert f'data-lit="TR{best[1]} path{best[1]}"' in document
    rates = [float(overrides[0].partition("=")[2]) for overrides in Random(num_trials=12).plan(SPACE)]
    low = sum(rate < 1e-3 for rate in rates)  # the lower half of the axis
    assert 0 < low < 12
    assert f'data-sifted="{low}"' in document
    assert f'data-rows="{low}"' in document
    assert 'data-released="0"' in document


def test_a_sweep_without_a_result_has_a_page(browser: str, tmp_path: Path) -> None:
    """Nothing is drawn, nothing fails."""
    statuses = ("failed", "waiting")
    document = rendered(browser, probed(page(tmp_path, statuses=statuses)), profile=tmp_path / "profile")
    assert failures(document) == []
    assert "No trial has ended with a value of accuracy yet" in document


def test_hostile_words_are_inert(browser: str, tmp_path: Path) -> None:
    """Markup in names, messages and settings is text: it makes no element and runs nothing."""
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    document = rendered(
        browser,
        probed(page(tmp_path, statuses=("done", "failed"), name=hostile)),
        profile=tmp_path / "profile",
    )
    assert "<title>owned" not in document
    assert "<img" not in document
    assert failures(document) == []
