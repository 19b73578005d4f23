"""Configurations as files, and targets as objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distrib.config import (
    CheckpointConfig,
    RunConfig,
    TrainConfig,
    build,
    digest,
    dump,
    flatten,
    load,
)
from distrib.errors import ConfigError
from distrib.schedules import Linear

CONFIG = RunConfig(
    name="größe",
    seed=3,
    plugins=("mine",),
    train=TrainConfig(steps=7, max_grad_norm=1e-5),
    checkpoint=CheckpointConfig(save_every=2),
    optimizer={"_target_": "distrib.optimizers.AdamW", "lr": 1e-5, "betas": [0.9, 0.95]},
    tracking={"wandb": {"_target_": "distrib.tracking.wandb.WandB", "mode": None}},
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """A file holds the whole configuration, small floats and other alphabets included."""
    dump(CONFIG, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == CONFIG
    assert load(tmp_path) == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_digest_tells_any_difference(tmp_path: Path) -> None:
    """Equal configurations have equal digests, also after a file; one changed setting changes it."""
    dump(CONFIG, tmp_path / "config.yaml")
    assert digest(load(tmp_path)) == digest(CONFIG)
    assert digest(replace(CONFIG, seed=4)) != digest(CONFIG)
    reordered = dict(reversed(CONFIG.optimizer.items()))
    assert digest(replace(CONFIG, optimizer=reordered)) == digest(CONFIG)
    assert digest(replace(CONFIG, train=TrainConfig(steps=8, max_grad_norm=1e-5))) != digest(CONFIG)


def test_flatten_gives_dotted_keys() -> None:
    """Every setting is found under the key that the command line uses."""
    flat = flatten(CONFIG)
    assert flat["train.steps"] == 7
    assert flat["optimizer.betas"] == [0.9, 0.95]
    assert flat["tracking.wandb.mode"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\ntrain: {step: 3}\n", "train.step=3: .*config.yaml holds a key .*did you mean steps"),
        ("name: [unclosed\n", "config.yaml: is not YAML"),
        ("- a list\n", "a mapping is expected"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """The message names the file and, where there is one, the key."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(tmp_path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """A run directory without a configuration is refused with the file's name."""
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be read: No such file"):
        load(tmp_path / "nowhere" / "config.yaml")


def test_a_target_becomes_its_object() -> None:
    """The class named by `_target_` is made with the other keys as arguments."""
    schedule = build(
        {"_target_": "distrib.schedules.Linear", "warmup": 5, "final": 0.5}, key="schedule", plugins=()
    )
    assert isinstance(schedule, Linear)
    assert (schedule.warmup, schedule.final) == (5, 0.5)


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "torch.load",
        "distribution.evil.Run",  # begins like distrib, and is another package
        "distrib.config.Path",  # reachable through distrib, and defined elsewhere
        "distrib.config.json.JSONDecoder",
        "distrib.config.load",  # a function: only classes are built
        "distrib.schedules.Linearr",
        "distrib.no_such_module.X",
        "Linear",
        None,
    ],
)
def test_only_classes_of_distrib_can_be_built(path: str | None) -> None:
    """A configuration from elsewhere cannot name other code, nor reach it through a module of ours."""
    with pytest.raises(ConfigError, match=r"schedule\._target_="):
        build({"_target_": path}, key="schedule", plugins=())


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A third party's package, importable as ``test_config_plugin``."""
    package = tmp_path / "test_config_plugin"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class Outer:\n"
        "    def __init__(self, *, inner: object, many: list[object]) -> None:\n"
        "        self.inner, self.many = inner, many\n"
        "class Refuses:\n"
        "    def __init__(self, *, size: int = 0) -> None:\n"
        "        raise ValueError(f'size {size} is odd')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "test_config_plugin"


def test_a_plugin_is_built_only_when_named(plugin: str) -> None:
    """Another package's class needs `plugins`, and the message says exactly what to add."""
    target = {"_target_": "test_config_plugin.Outer", "inner": 1, "many": []}
    with pytest.raises(
        ConfigError, match=r"if you trust test_config_plugin, add plugins=\[test_config_plugin\]"
    ):
        build(target, key="strategy", plugins=())
    assert build(target, key="strategy", plugins=[plugin]).inner == 1


def test_targets_within_targets_are_built(plugin: str) -> None:
    """Nested targets, also in lists, are built; the allow-list holds for them too, under their key."""
    linear = {"_target_": "distrib.schedules.Linear"}
    target = {"_target_": "test_config_plugin.Outer", "inner": linear, "many": [linear, 2]}
    outer = build(target, key="strategy", plugins=[plugin])
    assert isinstance(outer.inner, Linear)
    assert isinstance(outer.many[0], Linear)
    with pytest.raises(ConfigError, match=r"strategy\.many\[0\]\._target_=os\.system"):
        build(target | {"many": [{"_target_": "os.system"}]}, key="strategy", plugins=[plugin])


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"_target_": "distrib.schedules.Linear", "warm": 5}, "unexpected keyword argument 'warm'"),
        ({"_target_": "test_config_plugin.Outer"}, "missing a required argument: 'inner'"),
        ({"_target_": "test_config_plugin.Refuses", "size": 3}, "refuses these arguments: size 3 is odd"),
    ],
)
def test_arguments_a_constructor_refuses_are_config_errors(
    plugin: str, target: dict[str, object], says: str
) -> None:
    """A constructor's own complaint comes out as a `ConfigError` under the target's key."""
    with pytest.raises(ConfigError, match=says):
        build(target, key="strategy", plugins=[plugin])
