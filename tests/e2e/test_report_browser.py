"""The page in a real browser: its scripts run, its curves are drawn, hostile text stays text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic import info, record, write_run

from distrib.tracking.files import RunFiles
from distrib.tracking.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<script>
addEventListener("error", (event) => document.body.setAttribute("data-failed", event.message));
addEventListener("securitypolicyviolation", (event) => {
  document.body.setAttribute("data-failed", "blocked: " + event.blockedURI);
});
</script>"""
HOVER = """<script>
// After the first layout, which draws every chart at its final width.
addEventListener("load", () => setTimeout(() => {
  const svg = document.querySelector("#charts svg"), box = svg.getBoundingClientRect();
  const middle = { clientX: box.left + box.width / 2, clientY: box.top + 50, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", middle));
  document.querySelectorAll("#charts button").forEach((button) => button.click());
}, 200));
</script>"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser's path; skipped where there is none, unless ``DISTRIB_REQUIRE_BROWSER=1``."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("DISTRIB_REQUIRE_BROWSER") == "1":
        pytest.fail("DISTRIB_REQUIRE_BROWSER=1, and no browser is installed: apt-get install chromium")
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    return found


def rendered(browser: str, page: Path, *, profile: Path, width: int = 1280) -> str:
    """The document after its scripts ran."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=3000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def probed(page: Path, *extra: str) -> Path:
    """A copy of the page that reports errors, with its policy widened for the probe alone."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"script-src '[^']+'", "script-src 'unsafe-inline'", text, count=1)
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("<main>", PROBE + "<main>").replace("</body>", "".join(extra) + "</body>"))
    return copy


def paths(document: str) -> list[str]:
    return re.findall(r'<path class="[^"]+" d="([^"]+)"', document)


def failures(document: str) -> list[str]:
    """What the probe saw go wrong."""
    return re.findall(r'<body[^>]* data-failed="([^"]*)"', document)


def test_the_probe_sees_what_goes_wrong(browser: str, tmp_path: Path) -> None:
    """An error in a script and a request that the policy forbids are both noticed."""
    (tmp_path / "config.yaml").write_text("name: news\n")
    page = write_report(tmp_path)
    for wrong in ("<script>absent();</script>", '<img src="https://example.org/x.png">'):
        document = rendered(browser, probed(page, wrong), profile=tmp_path / "profile")
        assert len(failures(document)) == 1, wrong


def test_curves_are_drawn_under_the_page_s_own_policy(browser: str, tmp_path: Path) -> None:
    """As shipped, its script allowed by digest alone: eight charts, each with a curve and a last value."""
    write_run(RunFiles(), info(tmp_path))
    document = rendered(browser, write_report(tmp_path), profile=tmp_path / "profile")
    assert document.count('<figure class="card chart">') == 8
    curves = paths(document)
    assert len(curves) == 8 + 4  # four are noisy and have a smoothed line as well
    assert all(curve.count("L") >= 1 and "NaN" not in curve for curve in curves)
    assert re.search(r"<span>held-out accuracy</span>.*?<output>0.8</output>", document)


def test_hovering_and_the_log_scale_work_without_an_error(browser: str, tmp_path: Path) -> None:
    """Moving over a chart shows step and value in all of them; no script error, nothing blocked."""
    files = RunFiles()
    files.start(info(tmp_path))
    for step in range(1, 41):
        files.step(record(step, loss=100.0 / step**2))
    files.close()
    document = rendered(browser, probed(write_report(tmp_path), HOVER), profile=tmp_path / "profile")
    assert failures(document) == []
    steps = re.findall(r"<output>step (\d+): ", document)
    assert len(steps) == 6
    assert len(set(steps)) == 1
    assert 15 <= int(steps[0]) <= 25
    assert 'aria-pressed="true"' in document


def test_the_ticks_of_a_nearly_flat_curve_differ(browser: str, tmp_path: Path) -> None:
    """They all read 8.232 where bytes a step differed in the fifth digit."""
    files = RunFiles()
    files.start(info(tmp_path))
    for step in range(1, 41):
        files.step(record(step, loss=8.232 + step / 1e5, memory=4.252e8 + step, tokens=5123.0))
    files.close()
    document = rendered(browser, probed(write_report(tmp_path)), profile=tmp_path / "profile")
    assert failures(document) == []
    charts = re.findall(r"<svg[^>]*viewBox.*?</svg>", document, flags=re.DOTALL)
    ticks = [re.findall(r'<text x="44"[^>]*>([^<]+)</text>', chart) for chart in charts]  # left of the axis
    assert len(ticks) == 6
    assert all(len(set(texts)) == len(texts) >= 2 for texts in ticks), ticks


@pytest.mark.parametrize("last", [1, 3])
def test_the_shortest_runs_draw_without_an_error(browser: str, tmp_path: Path, last: int) -> None:
    """One point or three: no division by an empty range."""
    write_run(RunFiles(), info(tmp_path), last=last)
    document = rendered(browser, probed(write_report(tmp_path)), profile=tmp_path / "profile")
    assert failures(document) == []
    assert "NaN" not in document
    assert document.count('<figure class="card chart">') == 6


def test_an_empty_run_draws_without_an_error(browser: str, tmp_path: Path) -> None:
    """No step at all: the page stands and its script does nothing."""
    (tmp_path / "config.yaml").write_text("name: news\n")
    document = rendered(browser, probed(write_report(tmp_path)), profile=tmp_path / "profile")
    assert failures(document) == []
    assert "No step was recorded yet" in document


def test_a_hundred_thousand_steps_are_drawn(browser: str, tmp_path: Path) -> None:
    """The page of a long run stays small and draws."""
    files = RunFiles()
    files.start(info(tmp_path, num_steps=100_000))
    for step in range(1, 100_001):
        files.step(record(step, loss=1.0 + step % 13))
    files.close()
    page = write_report(tmp_path)
    assert page.stat().st_size < 500_000
    document = rendered(browser, page, profile=tmp_path / "profile")
    assert len(paths(document)) == 6 + 4


def test_hostile_names_are_inert(browser: str, tmp_path: Path) -> None:
    """Markup in labels, metrics, name and configuration is text: it makes no element and runs nothing."""
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    files = RunFiles()
    write_run(files, info(tmp_path, name=hostile), labels=[hostile, "b"])
    resumed = RunFiles()
    resumed.start(info(tmp_path, name=hostile, first_step=40))
    resumed.step({**record(41), f"eval/{hostile}": 1.0})
    resumed.close()
    (tmp_path / "config.yaml").write_text(f"name: |\n  {hostile}\n")
    document = rendered(browser, probed(write_report(tmp_path)), profile=tmp_path / "profile")
    assert "<title>owned" not in document
    assert "<img" not in document
    assert failures(document) == []
    assert "held-out &lt;/script&gt;" in document
