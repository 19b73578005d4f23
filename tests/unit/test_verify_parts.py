"""The parts of `distrib verify`: what it takes, what it compares, how it judges and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from distrib.cli.cells import Common, check_each_can_run
from distrib.cli.main import main
from distrib.cli.verify_table import remarks
from distrib.config import RunConfig
from distrib.errors import CheckpointError, ConfigError, LaunchError
from distrib.parallel.state import entry
from distrib.proof import options
from distrib.proof.bounds import BOUNDS, NAMES, Bounds
from distrib.proof.jobs import Cell, last_words
from distrib.proof.nudged import nudge
from distrib.proof.randomness import Randomness, random_parts
from distrib.proof.trajectory import Differences, Trajectory, differences, tensor_differences
from distrib.proof.verify import Asked, Row, Verified, as_json
from distrib.proof.verify_page import write_page
from distrib.proof.where import compare_step, first_broken, shares, with_every_step
from distrib.state import StateWriter

PLUGINS = Path(__file__).parents[1] / "plugins"


def checkpoint(folder: Path, *, model: dict[str, list[float]], optimizer: dict[str, list[float]]) -> Path:
    writer = StateWriter(folder, rank=0, size=1)
    for section, tensors in (("model", model), ("optimizer", optimizer)):
        writer.write(section, [entry(name, torch.tensor(value)) for name, value in tensors.items()])
    return folder


def trajectory(
    folder: Path, *, losses: Sequence[float] = (1.0, 0.5), norm: float = 1.0, weight: float = 1.0
) -> Trajectory:
    return Trajectory(
        losses=losses,
        grad_norms=[norm] * len(losses),
        metrics={"accuracy": 0.5, "perplexity": 100.0},
        checkpoint=checkpoint(folder, model={"a": [1.0, 2.0], "b": [0.0, weight]}, optimizer={}),
    )


def found(*, losses: Sequence[float] = (0.0,), norms: Sequence[float] = (0.0,)) -> Differences:
    return Differences(losses=losses, grad_norms=norms, weight=0.0, parameter="b", evaluation=0.0)


def test_words_of_the_command_are_taken_out() -> None:
    """What the comparison understands it keeps; everything else belongs to the run."""
    own, rest = options.split(
        ["experiment=tiny", "strategies=ddp, fsdp", "steps=7"], own=["strategies", "steps"]
    )
    assert rest == ["experiment=tiny"]
    assert options.names(own, "strategies") == ("ddp", "fsdp")
    assert options.count(own, "steps", default=20) == 7
    assert options.counts(own, "world_sizes", default=(1, 2)) == (1, 2)
    assert options.counts({"world_sizes": "[4,2,4]"}, "world_sizes", default=()) == (4, 2)
    assert options.bound({"bounds.loss": "1e-3"}, "bounds.loss") == 1e-3
    assert options.bound({}, "bounds.loss") is None


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("world_sizes=0", partial(options.counts, default=(1,))),
        ("world_sizes=two", partial(options.counts, default=(1,))),
        ("steps=1,2", partial(options.count, default=20)),
        ("strategies=", options.names),
        ("bounds.loss=-1", options.bound),
        ("bounds.loss=nan", options.bound),
        ("bounds.loss=small", options.bound),
    ],
)
def test_a_wrong_word_is_refused_by_name(word: str, read: Callable[[Mapping[str, str], str], object]) -> None:
    """Key and value stand in the message, before anything is started."""
    key, _, value = word.partition("=")
    with pytest.raises(ConfigError, match=f"^{word}: "):
        read({key: value}, key)


def test_what_is_varied_cannot_be_set() -> None:
    """`strategy=ddp` and `resume=...` would contradict what is compared."""
    for word in ("strategy=ddp", "resume=runs/latest"):
        with pytest.raises(ConfigError, match=word):
            options.split([word], own=[])


@pytest.mark.slow
def test_cells_are_every_combination_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A combination that cannot run is kept with its reason; a strategy that never can is refused."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    common = Common(overrides=["experiment=tiny"], config_dirs=[str(PLUGINS / "conf")], steps=7)
    cells = common.cells(["single", "local_mean"], world_sizes=[1, 2], microbatch_sizes=[4])
    refused = [cell.name for cell in cells if not isinstance(cell.config, RunConfig)]
    assert refused == ["single-2-4"]
    configs = [cell.config for cell in cells if isinstance(cell.config, RunConfig)]
    assert [(c.train.steps, c.train.epochs, c.checkpoint.keep_last, c.tracking) for c in configs] == [
        (7, None, 1, {})
    ] * 3
    assert [config.launcher["num_processes"] for config in configs] == [1, 1, 2]
    check_each_can_run(cells)
    with pytest.raises(ConfigError, match="one process, not 2"):
        check_each_can_run([cell for cell in cells if cell.world_size == 2])
    assert "single" not in common.strategies([])
    assert {"ddp", "local_mean"} <= set(common.strategies([]))


def test_a_wrong_strategy_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The near miss is named, with the exit code of wrong settings, and nothing is started."""
    assert main(["verify", "experiment=tiny", "strategies=dpp"]) == 2
    assert "did you mean ddp?" in capsys.readouterr().err


def test_differences_of_two_runs(tmp_path: Path) -> None:
    """Losses absolutely, norms and metrics relatively where above 1, weights by parameter."""
    theirs = trajectory(tmp_path / "theirs", norm=100.0)
    ours = replace(
        trajectory(tmp_path / "ours", losses=(1.0, 0.75), norm=101.0, weight=1.5),
        metrics={"accuracy": 0.75, "perplexity": 110.0},
    )
    apart = differences(ours, theirs)
    assert apart.losses == [0.0, 0.25]
    assert apart.grad_norms == pytest.approx([0.01, 0.01])
    assert (apart.weight, apart.parameter) == (0.5, "b")
    assert apart.evaluation == 0.25


def test_what_is_missing_or_not_finite_is_infinitely_far(tmp_path: Path) -> None:
    """A run that ended early, a NaN and a metric that only one has all break every bound."""
    theirs = trajectory(tmp_path / "theirs")
    for number, ours in enumerate(
        [
            trajectory(tmp_path / "short", losses=(1.0,)),
            trajectory(tmp_path / "nan", losses=(1.0, math.nan)),
            trajectory(tmp_path / "none", losses=()),
        ]
    ):
        assert differences(ours, theirs).largest["loss"] == math.inf, number
    odd = replace(theirs, metrics={"accuracy": 0.5})
    assert differences(odd, theirs).evaluation == math.inf
    poisoned = trajectory(tmp_path / "poisoned", weight=math.nan)
    assert differences(poisoned, theirs).weight == math.inf


def test_checkpoints_of_different_models_are_not_compared(tmp_path: Path) -> None:
    """A tensor that only one of them has is named."""
    a = checkpoint(tmp_path / "a", model={"x": [1.0]}, optimizer={})
    b = checkpoint(tmp_path / "b", model={"x": [1.0], "y": [1.0]}, optimizer={})
    with pytest.raises(CheckpointError, match="'y'"):
        tensor_differences(a, b)


def test_bounds_make_room_for_rounding_only() -> None:
    """Ten times what rounding alone did; what the user gave stays; NaN breaks every bound."""
    tight = BOUNDS["fp64"]
    floor = dict.fromkeys(NAMES, 1e-6)
    wide = tight.widened(floor, given={"loss": 1e-12})
    assert (wide.loss, wide.weights) == (1e-12, pytest.approx(1e-5))
    assert BOUNDS["fp32"].widened(dict.fromkeys(NAMES, 0.0), given={}) == BOUNDS["fp32"]
    assert wide.broken_by({"loss": 0.0, "grad_norm": 1.0, "weights": math.nan, "evaluation": 0.0}) == [
        "grad_norm",
        "weights",
    ]


def test_the_nudge_is_one_rounding() -> None:
    """Every weight moves, by at most two units in the last place."""
    model = nn.Linear(50, 50)
    before = model.weight.detach().clone()
    nudge(model)
    relative = ((model.weight - before) / before).abs()
    assert (model.weight != before).all()
    assert relative.max() < 2.1 * torch.finfo(torch.float32).eps


def test_random_parts_are_found_by_their_rates() -> None:
    """Dropout modules and other modules' rates are counted by kind; a rate of zero is none."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layerdrop = 0.25

    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.0), nn.Linear(1, 1), Odd())
    assert list(random_parts(model)) == ["2 x Dropout(p=0.1): 0, 1", "1 x Odd(layerdrop=0.25): 4"]


def test_differences_are_in_units_of_their_kind(tmp_path: Path) -> None:
    """Noise on a gradient that is zero is nothing beside another parameter's gradient."""
    model = {"a": [2.0], "b": [1.0]}
    slots = {"a/exp_avg": [1.0], "b/exp_avg": [1e-9]}
    ours = checkpoint(
        tmp_path / "ours", model={**model, "b": [2.0]}, optimizer={**slots, "b/exp_avg": [2e-9]}
    )
    theirs = checkpoint(tmp_path / "theirs", model=model, optimizer=slots)
    assert shares(ours, theirs) == pytest.approx(
        {"a/exp_avg": 0.0, "b/exp_avg": 1e-9, "a": 0.0, "b": 0.5}, rel=1e-3
    )


def test_a_tensor_stands_out_by_more_than_rounding() -> None:
    """Ten times what rounding does to any tensor of its kind; the one most off is named."""
    rounding = {"a": 1e-7, "b": 0.0, "a/exp_avg": 1e-3}
    found = {"a": 9e-7, "b": 9e-7, "a/exp_avg": 9e-3}
    assert compare_step(found, rounding=rounding, step=1) is None
    place = compare_step({**found, "b": 2e-6, "a/exp_avg": 0.5}, rounding=rounding, step=3)
    assert place is not None
    assert (place.step, place.name, place.share, place.count, place.total) == (3, "a/exp_avg", 0.5, 2, 3)
    assert compare_step({**found, "b": math.nan}, rounding=rounding, step=1) is not None


def test_the_first_step_that_breaks_a_bound() -> None:
    """Loss or gradient norm; where neither does, the weights are looked at up to the last step."""
    bounds = Bounds(loss=0.1, grad_norm=0.1, weights=0.1, evaluation=0.1)
    assert first_broken(found(losses=[0.0, 0.0, 1.0], norms=[0.0, 1.0, 1.0]), bounds) == 2
    assert first_broken(found(losses=[0.0, 0.0, math.nan], norms=[0.0] * 3), bounds) == 3
    assert first_broken(found(losses=[0.0] * 4, norms=[0.0] * 4), bounds) == 4


def test_the_second_look_trains_no_further_than_needed() -> None:
    """A checkpoint after every step, all kept, and the same schedule."""
    common = Common(overrides=["experiment=tiny"], config_dirs=[], steps=9)
    config = common.compose("ddp", world_size=2)
    again = with_every_step(config, last_step=3)
    assert (again.train.steps, again.train.stop_after) == (9, 3)
    assert (again.checkpoint.save_every, again.checkpoint.keep_last) == (1, 3)
    assert with_every_step(config, last_step=9).train.stop_after is None


def test_last_words_are_one_line_and_where_the_rest_is() -> None:
    """The error itself, without torch's rank prefix, and the log."""
    said = "log of rank 1: runs/x.log\nrank 1 failed:\n[rank1]: Traceback\n[rank1]: ValueError: no\n"
    assert last_words(said) == "ValueError: no\nlog of rank 1: runs/x.log"
    assert last_words("") == ""


def verified(tmp_path: Path, rows: Sequence[Row], *, never_ran: Sequence[str] = ()) -> Verified:
    run = trajectory(tmp_path / "run")
    return Verified(
        rows=rows,
        references={4: run},
        nudged=found(losses=[1e-7] * 2),
        bounds=BOUNDS["fp32"],
        never_ran=never_ran,
    )


def row(verdict: str, **more: object) -> Row:
    cell = Cell(strategy="<b>ddp</b>", world_size=2, microbatch_size=4, config=LaunchError("x"))
    return Row(cell=cell, verdict=verdict, **more)  # type: ignore[arg-type]


def test_the_verdict_over_all(tmp_path: Path) -> None:
    """Passes where something ran and all that ran is the same; nothing skipped counts as a pass."""
    assert verified(tmp_path, [row("same"), row("cannot run")]).passed
    assert not verified(tmp_path, [row("cannot run")]).passed
    assert not verified(tmp_path, []).passed
    assert not verified(tmp_path, [row("same"), row("differs")]).passed
    assert not verified(tmp_path, [row("same"), row("failed")]).passed
    missing = verified(tmp_path, [row("same"), row("cannot run")], never_ran=["horovod"])
    assert not missing.passed
    assert "horovod was asked for and ran nowhere" in [text for text, _ in remarks(missing)]


def test_page_and_record_say_all_and_escape_it(tmp_path: Path) -> None:
    """Curves, differences, randomness and remarks are on the page, and no text becomes markup."""
    broken = row(
        "differs",
        ours=trajectory(tmp_path / "ours"),
        found=found(losses=[0.0, 1e-3], norms=[0.0, math.inf]),
        broken=["loss"],
        place="after step <i>2</i>",
    )
    result = verified(tmp_path, [broken, row("failed", message="<script>alert(1)</script>")])
    config = Common(overrides=["experiment=tiny"], config_dirs=[], steps=9).compose("single", world_size=1)
    plan = Asked(cells=[], references={4: config}, bounds={})
    page = write_page(tmp_path, result, plan=plan, randomness=Randomness(parts=("2 x Dropout",), felt=True))
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "NOT the one-process run" in text
    assert "2 x Dropout" in text
    assert "&lt;b&gt;ddp" in text
    assert "&lt;i&gt;2" in text
    assert not any(tag in text for tag in ("<script", "<b>", "<i>"))
    assert not any(word in text for word in ("http://", "https://", ">nan<"))
    record = json.loads(json.dumps(as_json(result)))
    assert [line["verdict"] for line in record["rows"]] == ["differs", "failed"]
    assert record["rows"][0]["loss"] == 1e-3


@pytest.mark.slow
def test_what_changes_the_result_on_purpose_is_told_apart() -> None:
    """By the strategy's own word, its options included: verify leaves it out unless it is asked for."""
    common = Common(overrides=["experiment=tiny"], config_dirs=[], steps=2)
    exact, changes = common.exact(["ddp", "diloco", "local_sgd", "parameter_server"])
    assert exact == ["ddp", "parameter_server"]
    assert set(changes) == {"diloco", "local_sgd"}
    rounded = Common(overrides=["experiment=tiny", "strategy.compression=bf16"], config_dirs=[], steps=2)
    assert rounded.exact(["ddp"]) == ([], {"ddp": "gradients are sent as bf16"})
    late = Common(overrides=["experiment=tiny", "strategy.mode=async"], config_dirs=[], steps=2)
    assert list(late.exact(["parameter_server"])[1]) == ["parameter_server"]
