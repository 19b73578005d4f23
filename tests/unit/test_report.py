"""The page of a run: all its numbers, few enough points, and nothing in it that could run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic import CONFIG, info, record, report, write_run

from distrib.errors import DataError
from distrib.tracking.bars import bars
from distrib.tracking.curves import BUCKETS, curves, smoothed, thin
from distrib.tracking.files import RunFiles
from distrib.tracking.meter import Meter
from distrib.tracking.report import CLASSES_DRAWN, confusion, view, write_report

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    loaded: list[dict[str, Any]] = json.loads(found[1])
    return loaded


def visible(page: str) -> str:
    """The page's text without tags, scripts and styles."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare)))


def test_a_finished_run_is_all_there(tmp_path: Path) -> None:
    """Curves of every kind, metrics, classes, confusion, configuration, versions, hardware, command."""
    write_run(RunFiles(), info(tmp_path))
    (tmp_path / "config.yaml").write_text("name: news\ntrain:\n  steps: 40\n")
    (tmp_path / "command.txt").write_text("distrib train experiment=news\n")
    checkpoint = tmp_path / "checkpoints" / "step-00000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").write_text("{}")
    (tmp_path / "checkpoints" / "best").symlink_to("step-00000040")
    page = page_of(tmp_path)

    assert [chart["title"] for chart in data_of(page)] == [
        "loss", "held-out accuracy", "held-out loss", "learning rate", "gradient norm",
        "examples per second", "tokens per second", "peak memory of a rank",
    ]  # fmt: skip
    text = visible(page)
    for expected in (
        "finished · 40 of 40 steps", "ddp · 2 processes · 22.7M parameters", "0.8 accuracy",
        "64 examples per second", "after step 40", "business 0.900 0.900 0.900 10", "train: steps: 40",
        "torch", "cpu", "step-00000040",
        "distrib train experiment=news",
    ):  # fmt: skip
        assert expected in text
    assert "business taken for sport: 1 of 10" in page


def test_what_the_strategy_measured_has_curves_and_a_place_on_the_bar(tmp_path: Path) -> None:
    """Its own numbers, which come now and then, follow the run's; the bar keeps the last of each."""
    measured = [{**record(step), "strategy/wait_share": 0.1 * step} for step in (2, 4)]
    records = [record(1), measured[0], record(3), measured[1], record(5)]
    assert curves(records)[-1].title == "wait share"
    assert curves(records)[-1].points == [(2, 0.2), (4, 0.4)]
    meter = Meter(num_steps=5, first_step=0)
    for one in records:
        meter.update(one)
    assert meter.fields()[-1] == ("wait share", "0.4")


def test_what_the_strategy_measured_in_parts_has_bars(tmp_path: Path) -> None:
    """Parts are added up over the run and drawn together, not as curves; the bar has the latest small."""
    parts = ("strategy/staleness/0", "strategy/staleness/1", "strategy/staleness/8_or_more")
    records = [
        {**record(step), "strategy/staleness": 0.3, **dict(zip(parts, (3.0, step, 0.0), strict=True))}
        for step in (1, 2)
    ]
    assert [curve.title for curve in curves(records)][-1] == "staleness"
    (chart,) = bars(records)
    assert chart.title == "staleness, whole run"
    assert [(bar.name, bar.text, bar.length) for bar in chart.bars] == [
        ("0", "6 · 67%", 1.0),
        ("1", "3 · 33%", 0.5),
        ("8 or more", "0 · 0%", 0.0),
    ]
    meter = Meter(num_steps=5, first_step=0)
    for one in records:
        meter.update(one)
    assert meter.fields()[-1] == ("staleness", "0.3 █▆·")
    assert bars([{**record(1), "strategy/waited_seconds/worker_0": 0.0}]) == []

    files = RunFiles()
    files.start(info(tmp_path))
    for one in records:
        files.step(one)
    files.close()
    assert "staleness, whole run 0 6 · 67% 1 3 · 33% 8 or more 0 · 0%" in visible(page_of(tmp_path))


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """Nothing is fetched: no address in the page, and a policy that forbids every source."""
    write_run(RunFiles(), info(tmp_path))
    page = page_of(tmp_path)
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, which no browser fetches
    assert not re.search(r"<(link|iframe|object|embed)\b|@import|\burl\(", page)


@pytest.mark.parametrize("where", ["name", "label", "config", "note", "metric", "command"])
def test_hostile_text_stays_text(tmp_path: Path, where: str) -> None:
    """A run name, label, setting, note, metric or command that is markup opens no tag, and is still shown."""
    facts = info(
        tmp_path,
        name=HOSTILE if where == "name" else "news",
        notes={HOSTILE: HOSTILE} if where == "note" else {},
    )
    files = RunFiles()
    write_run(files, facts, labels=[HOSTILE, "b"] if where == "label" else ["a", "b"])
    if where == "metric":
        resumed = RunFiles()
        resumed.start(info(tmp_path, first_step=40))
        resumed.step({**record(41), f"eval/{HOSTILE}": 1.0})
        resumed.close()
    if where == "config":
        (tmp_path / "config.yaml").write_text(json.dumps({HOSTILE: HOSTILE}))
    if where == "command":
        (tmp_path / "command.txt").write_text(HOSTILE)
    page = page_of(tmp_path)

    assert "<img" not in page
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    shown = any(HOSTILE in chart["title"] for chart in data_of(page)) or "onerror=alert(1)" in visible(page)
    assert shown


def test_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    """A key in the configuration or the command is hidden."""
    write_run(RunFiles(), info(tmp_path))
    (tmp_path / "config.yaml").write_text(
        "data:\n  api_key: s3cr3t-value\n  url: https://me:s3cr3t-value@host/\n"
    )
    (tmp_path / "command.txt").write_text("distrib train data.path=https://me:s3cr3t-value@host/x")
    assert "s3cr3t-value" not in page_of(tmp_path)


@pytest.mark.parametrize("last", [None, 1, 25])
def test_a_killed_or_running_run_has_a_page(tmp_path: Path, last: int | None) -> None:
    """With one step, with some, or with an evaluation but no summary."""
    write_run(RunFiles(), info(tmp_path), last=last)
    text = visible(page_of(tmp_path))
    assert ("finished · 40 of 40" if last is None else f"not finished · {last} of 40 steps") in text
    assert ("after step 20" in text) == (last == 25)


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    """Killed before the first step: the configuration is there, and that no step was made is said."""
    (tmp_path / "config.yaml").write_text("name: news\n")
    text = visible(page_of(tmp_path))
    assert "No step was recorded yet" in text
    assert "name: news" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """A directory without a run, and a run with a damaged file, are named."""
    with pytest.raises(DataError, match="is not a run directory"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(DataError, match=r"config\.yaml is not YAML"):
        write_report(tmp_path)


def test_a_stopped_run_says_what_stopped_it(tmp_path: Path) -> None:
    """The summary's reason stands beside the name, and skipped steps are counted."""
    files = RunFiles()
    write_run(files, info(tmp_path), last=13)
    files.finish({"steps": 13, "stopped_by": "SIGTERM", "skipped_steps": 2})
    files.close()
    text = visible(page_of(tmp_path))
    assert "stopped by SIGTERM · 13 of 40 steps" in text
    assert "2 steps skipped" in text


@pytest.mark.slow
def test_a_long_run_is_thinned_and_keeps_its_spikes() -> None:
    """100,000 steps become at most 1,002 points a curve; the one spike and both ends are among them."""
    records = [record(step, loss=50.0 if step == 77_777 else 1.0 + step % 7) for step in range(1, 100_001)]
    loss = next(curve for curve in curves(records) if curve.title == "loss")
    assert len(loss.points) <= 2 * BUCKETS + 2
    assert (77_777, 50.0) in loss.points
    assert loss.points[0][0] == 1
    assert loss.points[-1][0] == 100_000
    assert loss.points == sorted(loss.points)


def test_a_short_curve_is_left_alone() -> None:
    """Up to two points a bucket nothing is dropped."""
    points = [(float(step), 0.0) for step in range(2 * BUCKETS)]
    assert thin(points) == points


def test_smoothing_has_no_lag() -> None:
    """A straight line stays where it is away from its ends, and a constant everywhere."""
    line = [(float(step), float(step)) for step in range(1000)]
    assert smoothed(line)[20:-20] == line[20:-20]
    assert smoothed([(1.0, 3.0), (2.0, 3.0)]) == [(1.0, 3.0), (2.0, 3.0)]


def test_a_number_that_is_not_finite_is_a_gap() -> None:
    """Null or NaN in a record leaves its point out and keeps the others."""
    records: list[dict[str, float | None]] = [
        record(1),
        {**record(2), "loss": None},
        record(3, loss=float("nan")),
    ]
    loss = next(curve for curve in curves(records) if curve.title == "loss")
    assert [step for step, _ in loss.points] == [1]


def test_a_large_confusion_matrix_shows_the_largest_classes() -> None:
    """Beyond 40 classes those with the most examples are drawn, in their order, and the rest counted."""
    size = 100
    matrix = [[(i + 1) * (i == j) for j in range(size)] for i in range(size)]
    found = confusion({"confusion": matrix, "classes": [{"name": f"c{i}"} for i in range(size)]})
    assert found is not None
    assert found["names"] == [f"c{i}" for i in range(size - CLASSES_DRAWN, size)]
    assert found["left_out"] == size - CLASSES_DRAWN
    assert confusion({"confusion": []}) is None


def test_a_class_without_examples_divides_by_nothing(tmp_path: Path) -> None:
    """A row of zeros is drawn as zeros."""
    found = confusion({"confusion": [[0, 0], [1, 3]], "classes": [{"name": "a"}, {"name": "b"}]})
    assert found is not None
    assert found["rows"][0] == [(0, 0.0), (0, 0.0)]
    assert found["rows"][1][1][1] == pytest.approx(0.75**0.5)


def test_the_page_follows_from_the_files(tmp_path: Path) -> None:
    """Two pages of the same files are equal, byte for byte."""
    files = RunFiles()
    files.start(info(tmp_path, config=CONFIG))
    files.evaluation(1, report())
    files.close()
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()
    assert view(tmp_path)["name"] == "news"
