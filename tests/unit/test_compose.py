"""From the command line's words to a checked configuration, or to an error that says what to type."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrib.cli.compose import compose
from distrib.cli.groups import GROUPS, config_dir, options
from distrib.cli.resume import changes
from distrib.config import RunConfig, dump, load
from distrib.errors import ConfigError

PLUGINS = Path(__file__).parents[1] / "plugins"
CONF = str(PLUGINS / "conf")


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package can be imported, as if it were installed."""
    monkeypatch.syspath_prepend(str(PLUGINS))


def refused(*overrides: str, config_dirs: tuple[str, ...] = ()) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dirs=config_dirs)
    return caught.value


def test_a_whole_run_from_one_word() -> None:
    """An experiment chooses its groups, a later choice and a value on the command line win over it."""
    config = compose(["experiment=tiny", "strategy=ddp", "strategy.bucket_mb=1", "train.steps=7"])
    assert config.name == "tiny"
    assert config.strategy == {
        "_target_": "distrib.strategies.ddp.DDP",
        "bucket_mb": 1.0,
        "find_unused_parameters": False,
        "compression": "none",
        "balance": "none",
        "powersgd_rank": 4,
        "powersgd_start": 10,
    }
    assert config.train.steps == 7
    assert config.train.max_grad_norm == 1.0
    assert config.choices["strategy"] == "ddp"
    assert config.choices["experiment"] == "tiny"


@pytest.mark.slow  # 43 of them, a quarter of a second each
@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS[1:-1] for option in options(group)]
)
def test_every_option_of_every_group_composes(
    group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file in conf/ holds a key or a type that its schema refuses; what it leaves open can be given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").write_text("a-host\n")  # where a file has to be there
    values: dict[str, Any] = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text()) or {}
    open_keys = [f"{group}.{key}=given" for key, value in values.items() if value == "???"]
    size = 2 if group == "strategy" and option != "single" else 1  # a parameter server takes two at least
    config = compose(["experiment=tiny", f"{group}={option}", *open_keys], world_size=size)
    assert group == "tracking" or config.choices[group] == option


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    """Each named run is complete: it needs no further setting."""
    assert compose([f"experiment={experiment}"]).name == experiment


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("train.step=3", "train.step", "did you mean train.steps?"),
        ("trian.steps=3", "trian.steps", "did you mean train.steps?"),
        ("stratgy=ddp", "stratgy", "did you mean strategy?"),
        ("optimizer.lrr=1", "optimizer.lrr", "did you mean optimizer.lr?"),
        ("launcher.num_process=2", "launcher.num_process", "did you mean launcher.num_processes?"),
        ("model.config.hidden_size=big", "model.config.hidden_size", None),
        ("strategy=dpp", "strategy", "did you mean ddp? available: ddp, "),
        ("experiment=tinny", "experiment", "did you mean tiny?"),
        ("precision=fp31", "precision", "did you mean fp32?"),
        ("tracking=[tensorbord]", "tracking", "did you mean tensorboard?"),
        ("train.steps=many", "train.steps", "int or null is expected"),
        ("train.steps=2.5", "train.steps", "int or null is expected"),
        ("train.group_by_length=perhaps", "train.group_by_length", "bool is expected"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas", "float"),
        ("precision.name=fp31", "precision.name", "one of fp32, bf16, fp16, fp64"),
        ("train=5", "train", "a section"),
        ("optimizer.lr=${train.step}", "optimizer.lr", "'train.step' not found"),
        ("train.steps", "train.steps", "write key=value"),
        ("name=a b(", "name", "quotes"),
        ("name=../escape", "name", "names a folder"),
        ("train.steps=null", "train.steps", "train.steps=... or train.epochs=..."),
        ("train.epochs=2", "train.steps", "train.epochs=2.0 is set too"),
        ("train.epochs=nan", "train.epochs", "must be above 0"),
        ("train.steps=0", "train.steps", "must be above 0"),
        ("train.microbatch_size=17", "train.microbatch_size", "larger than train.global_batch_size=16"),
        ("train.stop_after=21", "train.stop_after", "beyond the last step, 20"),
        ("train.prefetch=-1", "train.prefetch", "must not be negative"),
        ("seed=-1", "seed", "whole number"),
        ("schedule.warmup=21", "schedule.warmup", "longer than the whole run of 20 steps"),
        ("optimizer.lr=-1", "optimizer.lr", "must not be negative"),
        ("task=null", "task", "available: causal_lm, sequence_classification, token_classification"),
        ("launcher.num_processes=2", "strategy", "use strategy=ddp"),
        ("strategy._target_=os.system", "strategy._target_", "add plugins=[os]"),
        ("strategy=single,ddp", "strategy", "--multirun"),
    ],
)
def test_near_misses_say_what_would_work(override: str, key: str, says: str | None) -> None:
    """Each mistake is refused under its dotted key, with the remedy; a free-form mapping is not judged."""
    if says is None:
        assert compose(["experiment=tiny", override]).model["config"]["hidden_size"] == "big"
        return
    error = refused("experiment=tiny", override)
    assert error.key == key
    assert says in error.remedy


def test_a_world_from_outside_counts_instead_of_the_launcher() -> None:
    """Under torchrun the number of processes is the world's, whatever the launcher section says."""
    assert compose(["experiment=tiny", "launcher.num_processes=2"], world_size=1).name == "tiny"
    with pytest.raises(ConfigError, match="not 3"):
        compose(["experiment=tiny"], world_size=3)


def test_nothing_chosen_names_the_whole_runs() -> None:
    """`distrib train` alone says what there is to choose."""
    error = refused()
    assert (error.key, "tiny" in error.remedy) == ("model", True)


def test_values_take_the_type_of_their_setting() -> None:
    """A float may be written without a point or with an exponent, and a mapping key by key."""
    config = compose(
        ["experiment=tiny", "optimizer.lr=1e-5", "train.steps=null", "train.epochs=2", "model.config.x=1"]
    )
    assert config.optimizer["lr"] == 1e-5
    assert config.train.epochs == 2.0
    assert isinstance(config.train.epochs, float)
    assert config.model["config"]["x"] == 1


def test_a_section_may_be_given_as_one_mapping() -> None:
    """`group={...}` sets values of the chosen option and leaves the others."""
    optimizer = compose(["experiment=tiny", "optimizer={lr: 1e-5}"]).optimizer
    assert (optimizer["lr"], optimizer["betas"]) == (1e-5, [0.9, 0.999])


def test_interpolations_reach_defaults() -> None:
    """A setting may refer to another one that no file mentions."""
    assert compose(["experiment=tiny", "train.eval_every=${train.log_every}"]).train.eval_every == 50


def test_another_packages_strategy_needs_a_config_only() -> None:
    """A folder of configs brings a strategy; its own file may name the package it comes from."""
    config = compose(["experiment=tiny", "strategy=mine", "strategy.sizes=[1,2]"], config_dirs=[CONF])
    assert config.plugins == ("third_party",)
    assert config.strategy == {"_target_": "third_party.Mine", "size": 1, "sizes": [1, 2]}
    assert config.choices["strategy"] == "mine"


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("strategy.sizes=[1,x]", "strategy.sizes", "Integer"),
        ("strategy.siez=1", "strategy.siez", "did you mean strategy.size?"),
        ("strategy.mode=slow", "strategy.mode", "one of fast, exact"),
        ("strategy.on=12x", "strategy.on", "bool is expected"),
        ("strategy.limit=1.5", "strategy.limit", "int or null"),
        ("strategy.size=???", "strategy.size", "must be given"),
        ("~strategy.size", "strategy.size", "must be given"),
        ("strategy.size=13", "strategy._target_", "13 brings no luck"),
        ("strategy.inner={_target_: os.system}", "strategy.inner._target_", "plugins"),
        (
            "strategy.inner={_target_: distrib.schedules.Linear, warmp: 1}",
            "strategy.inner.warmp",
            "did you mean strategy.inner.warmup?",
        ),
    ],
)
def test_constructors_are_schemas(override: str, key: str, says: str) -> None:
    """Keys and types of any target, nested ones too, are those of its constructor."""
    error = refused("experiment=tiny", "strategy=mine", override, config_dirs=(CONF,))
    assert error.key == key
    assert says in error.remedy


def test_a_package_nobody_named_is_refused() -> None:
    """A config folder alone does not allow code; the remedy is one setting, and it works."""
    overrides = ["experiment=tiny", "strategy=unlisted"]
    assert "add plugins=[third_party]" in refused(*overrides, config_dirs=(CONF,)).remedy
    config = compose([*overrides, "plugins=[third_party]"], config_dirs=[CONF])
    assert config.strategy["_target_"] == "third_party.Mine"


def test_an_absent_config_folder_is_refused(tmp_path: Path) -> None:
    """A misspelt --config-dir is not passed over."""
    assert refused("experiment=tiny", config_dirs=(str(tmp_path / "no"),)).key == "--config-dir"


def test_trackers_combine() -> None:
    """Any number of trackers at once, each under its own name."""
    tracking = compose(["experiment=tiny", "tracking=[tensorboard,wandb]"]).tracking
    assert list(tracking) == ["tensorboard", "wandb"]
    assert compose(["experiment=tiny"]).tracking == {}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run directory whose configuration differs from every default."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints" / "step-00000005").mkdir(parents=True)
    config = compose(["experiment=tiny", "strategy=ddp", "seed=5", "optimizer.lr=0.5", "train.steps=9"])
    dump(config, run_dir / "config.yaml")
    return run_dir


@pytest.mark.parametrize("place", [".", "checkpoints/step-00000005"])
def test_a_resumed_run_keeps_its_configuration(finished: Path, place: str) -> None:
    """Everything comes from the run's own file, and the run goes on in its own directory."""
    config = compose([f"resume={finished / place}"])
    assert config == replace(
        load(finished), resume=str((finished / place).resolve()), run_dir=str(finished.resolve())
    )


def test_overrides_go_on_top_of_a_resumed_run(finished: Path) -> None:
    """A value changes that value alone, a group choice that whole group; both are checked again."""
    config = compose([f"resume={finished}", "strategy=single", "train.steps=12", "launcher.threads=3"])
    assert config.strategy == {"_target_": "distrib.strategies.single.Single"}
    assert config.choices["strategy"] == "single"
    assert (config.train.steps, config.seed, config.optimizer["lr"]) == (12, 5, 0.5)
    assert config.launcher["threads"] == 3
    assert refused(f"resume={finished}", "train.step=12").remedy.startswith("no such key; did you mean")
    assert refused(f"resume={finished}", "experiment=tiny").key == "experiment"


def test_what_defines_the_run_and_changed_is_told(finished: Path) -> None:
    """Only settings that change the numbers count as changes, not where and how they are computed."""
    before = load(finished)
    after = compose([f"resume={finished}", "strategy=single", "train.microbatch_size=2", "optimizer.lr=0.1"])
    assert changes(before, after) == {"optimizer.lr": (0.5, 0.1)}


def test_a_resumed_run_does_not_allow_its_own_code(finished: Path) -> None:
    """Packages named in somebody's run directory are used only when the command line names them too."""
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    stored |= {"plugins": ["third_party"], "strategy": {"_target_": "third_party.Mine", "size": 1}}
    (finished / "config.yaml").write_text(yaml.safe_dump(stored))
    assert refused(f"resume={finished}").key == "strategy._target_"
    assert compose([f"resume={finished}", "plugins=[third_party]"]).plugins == ("third_party",)


def test_a_stored_configuration_is_not_evaluated(finished: Path) -> None:
    """A run directory cannot have the environment of whoever resumes it written into a file."""
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    stored["name"] = "${oc.env:HOME}"
    (finished / "config.yaml").write_text(yaml.safe_dump(stored))
    assert refused(f"resume={finished}").key == "name"


def test_a_link_is_followed_before_it_moves(finished: Path, tmp_path: Path) -> None:
    """`resume=runs/latest` means the run it pointed to when the command was given."""
    (tmp_path / "latest").symlink_to(finished)
    assert compose([f"resume={tmp_path / 'latest'}"]).resume == str(finished.resolve())


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    """A directory without a run is named."""
    assert refused(f"resume={tmp_path}").remedy.startswith("no run is there")


def test_the_main_config_lists_every_group() -> None:
    """Each folder in conf/ is a group, and each group starts from something."""
    defaults: list[dict[str, Any]] = yaml.safe_load((config_dir() / "config.yaml").read_text())["defaults"]
    listed = {name for entry in defaults if isinstance(entry, dict) for name in entry}
    folders = {folder.name for folder in config_dir().iterdir() if folder.is_dir()}
    assert listed == folders == set(GROUPS)


@pytest.mark.slow
def test_a_run_config_needs_no_hydra_and_no_torch() -> None:
    """A worker reads its configuration without paying for Hydra; the parent composes without torch."""
    program = (
        "import sys\n"
        "import distrib.config\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'rich'}\n"
        "assert not ({'hydra', 'omegaconf'} | heavy) & set(sys.modules), 'distrib.config'\n"
        "from distrib.cli.compose import compose\n"
        "compose(['experiment=tiny', 'strategy=ddp', 'tracking=[tensorboard,wandb]'])\n"
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_defaults_of_a_run_are_its_dataclasses() -> None:
    """conf/ repeats no default of the sections that distrib/config.py declares."""
    config = compose(["experiment=tiny"])
    plain = RunConfig(name="x")
    assert config.timeouts == plain.timeouts
    assert replace(config.train, steps=None, global_batch_size=32, microbatch_size=8) == plain.train
    assert config.checkpoint == plain.checkpoint
