"""The run directory's own files: complete after a crash, cut on resume, readable as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic import info, record, report, write_run

from distrib.errors import DataError
from distrib.tracking.files import RunFiles, read_json, read_metrics, write_json


def steps(run_dir: Path) -> list[float | None]:
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def test_every_step_and_evaluation_is_one_object(tmp_path: Path) -> None:
    """``metrics.jsonl`` has each step's fields as they were given, and ``eval/<metric>`` objects."""
    write_run(RunFiles(), info(tmp_path))
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))

    assert steps(tmp_path) == list(range(1, 41))
    assert lines[0] == record(1)
    evaluations = [line for line in lines if "eval/accuracy" in line]
    assert evaluations[-1] == {"step": 40, "eval/accuracy": 0.8, "eval/loss": 0.25}
    assert read_json(tmp_path / "summary.json")["metrics"] == {"accuracy": 0.8}
    evaluation = read_json(tmp_path / "evaluation.json")
    assert evaluation["step"] == 40
    assert evaluation["confusion"][0] == [9, 1, 0]
    assert [row["name"] for row in evaluation["classes"]] == ["business", "sport", "tech"]


def test_a_killed_run_keeps_what_it_did(tmp_path: Path) -> None:
    """Each step is on disk when `step` returns, without `close`."""
    files = RunFiles()
    write_run(files, info(tmp_path), last=7)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert not (tmp_path / "summary.json").exists()
    files.close()


def test_resume_cuts_what_lies_beyond(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a resume each step is there once, in order; how many are made again is said."""
    write_run(RunFiles(), info(tmp_path))
    again = RunFiles()
    assert capsys.readouterr().err == ""
    again.start(info(tmp_path, first_step=25))
    lost = info(tmp_path).num_steps - 25
    said = f"notice: {lost} logged updates after step 25 are lost and made again\n"
    assert capsys.readouterr().err == said
    assert steps(tmp_path) == list(range(1, 26))
    assert not (tmp_path / "evaluation.json").exists()
    assert not (tmp_path / "summary.json").exists()
    again.step(record(26))
    again.close()
    assert steps(tmp_path) == list(range(1, 27))


def test_resume_after_a_line_cut_short(tmp_path: Path) -> None:
    """A last line that was being written at the kill is dropped, not joined to the next."""
    write_run(files := RunFiles(), info(tmp_path), last=5)
    files.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')
    write_run(RunFiles(), info(tmp_path, first_step=5, num_steps=8))
    assert steps(tmp_path) == list(range(1, 9))


def test_a_fresh_run_forgets_the_old_one(tmp_path: Path) -> None:
    """Starting at step 0 begins an empty record."""
    write_run(RunFiles(), info(tmp_path))
    files = RunFiles()
    files.start(info(tmp_path))
    files.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    """What every JSON parser reads: NaN and infinity are written as null, in steps and reports alike."""
    files = RunFiles()
    files.start(info(tmp_path))
    files.step(record(1, loss=value))
    files.evaluation(1, report(value))
    files.close()

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    for text in [
        *(tmp_path / "metrics.jsonl").read_text().splitlines(),
        (tmp_path / "evaluation.json").read_text(),
    ]:
        json.loads(text, parse_constant=refuse)
    assert next(read_metrics(tmp_path / "metrics.jsonl"))["loss"] is None


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    """A line that is no JSON object is refused by file and line; so is a damaged summary."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is not JSON"):
        list(read_metrics(path))
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:1 does not hold"):
        list(read_metrics(path))


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    """Where the new content cannot be written, the old file still stands."""
    write_json(tmp_path / "summary.json", {"a": 1})
    (tmp_path / "summary.json.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "summary.json", {"a": 2})
    assert read_json(tmp_path / "summary.json") == {"a": 1}
