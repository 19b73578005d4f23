"""The design's rules about imports, sizes, names and configs hold; and the checks for them bite."""

from __future__ import annotations

import importlib
import inspect
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from architecture import (
    Source,
    classes,
    functions,
    imports,
    layer,
    misplaced_engines,
    strategy_tests,
    undocumented,
    wrong_arrows,
)

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SOURCES = [Source.read(path, root=ROOT) for path in sorted((ROOT / "distrib").rglob("*.py"))]

VALUES = {"core", "errors"}
"""Frozen values and errors, which import nothing and which everything may import."""

STATE = {"state", "tensor_file"}
"""How weights and optimizer state are handed over, one tensor at a time."""

WORLD = {"world", "rank_variables"}
"""Who this process is; the two read one table of variables."""

ARROWS: dict[str, set[str]] = {
    "": set(),
    "core": set(),
    "errors": set(),
    "signals": set(),
    "environ": set(),
    "world": VALUES | WORLD,
    "rank_variables": VALUES | WORLD,
    "store": VALUES,
    "sealed": VALUES,
    "rendezvous": VALUES | {"store", "sealed", "diagnosis.checked", "diagnosis.collectives"},
    "diagnosis": VALUES | {"launchers.failure", "rendezvous"},
    "doctor": VALUES
    | WORLD
    | {"launchers.failure", "launchers.network", "rendezvous", "signals", "tracking.environment"},
    "tensor_file": VALUES,
    "state": VALUES | STATE,
    "targets": VALUES,
    "config": VALUES | {"targets"},
    "optimizers": VALUES,
    "schedules": VALUES,
    "parallel": VALUES | STATE,
    "strategies": VALUES | STATE | {"environ", "parallel", "world", "rendezvous"},
    "tasks": VALUES,
    "models": VALUES | {"data.files", "environ"},
    "data": VALUES | {"config", "models.base", "tasks.base"},
    "tracking": VALUES,
    "launchers": VALUES | WORLD | {"checkpoint", "signals"},
    "metrics": VALUES,
    "checkpoint": VALUES,
    "checkpointing": VALUES | {"state", "checkpoint"},
    "evaluation": VALUES | {"strategies.base", "tasks.base"},
    "trainer": VALUES
    | {"strategies.base", "tasks.base", "tracking.base", "checkpointing", "evaluation", "metrics"},
    "recipes": VALUES | {"config"},
    "run": VALUES
    | {"config", "diagnosis.watchdog", "recipes", "targets", "trainer", "checkpointing", "metrics", "data"}
    | {"evaluation", "tracking"},
    "proof": VALUES
    | STATE
    | {"checkpoint", "config", "data", "launchers", "parallel", "run", "strategies.base", "strategies.single"}
    | {"targets", "tracking", "worker", "world"},
    "worker": VALUES
    | WORLD
    | {"config", "launchers.failure", "launchers.logs", "rendezvous", "run", "signals"},
    "inference": VALUES | {"checkpoint", "config", "data", "parallel", "recipes", "targets", "tasks.base"},
    "sweeps": VALUES | {"checkpoint", "config", "signals", "targets", "tracking"},
    "testing": VALUES | STATE | {"strategies.base", "parallel", "world", "config", "targets"},
}
"""What each file or folder under ``distrib`` may import at run time, besides itself.

Not here: the command line, which may import everything and is imported by nobody.
"""
COMMAND_LINE = ("cli", "__main__")

TYPES: dict[str, set[str]] = {
    "checkpoint": {"state"},
    "checkpointing": {"config", "strategies.base", "tasks.base", "world"},
    "diagnosis": {"world"},
    "metrics": {"data.loader"},
    "models": {"data.base", "tasks.base"},
    "recipes": {"data.prepare", "models.base", "optimizers", "schedules", "tasks.base"},
    "rendezvous": {"world"},
    "run": {"strategies.base", "tasks.base", "world"},
    "store": {"world"},
    "tracking": {"tasks.base"},
    "trainer": {"config", "data.loader"},
}
"""What its annotations may name besides: imports that do not exist at run time."""

ENGINES = {
    "deepspeed": "distrib.strategies.deepspeed",
    "horovod": "distrib.strategies.horovod",
    "wandb": "distrib.tracking",
    "tensorboard": "distrib.tracking",
    "optuna": "distrib.sweeps",
}
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "pyarrow",
    "hydra",
    "tokenizers",
    "wandb",
    "tensorboard",
    "optuna",
)


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_`` in ``conf/``, with the file that holds it."""

    def walk(file: str, value: object) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(value, dict):
            if "_target_" in value:
                yield file, {key: item for key, item in value.items() if key != "defaults"}
            for item in value.values():
                yield from walk(file, item)

    for path in sorted(CONF.rglob("*.yaml")):
        yield from walk(str(path.relative_to(CONF)), yaml.safe_load(path.read_text()))


CONFIGS = [pytest.param(target, id=file) for file, target in configs()]


def constructor(target: str) -> dict[str, inspect.Parameter]:
    module, _, name = target.rpartition(".")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if layer(s.name) not in COMMAND_LINE], ids=lambda source: source.name
)
def test_imports_run_one_way(source: Source) -> None:
    """A module imports only what the table of arrows lets its layer import."""
    assert wrong_arrows(source, ARROWS, TYPES) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_an_engine_is_imported_in_its_own_file_only(source: Source) -> None:
    """DeepSpeed, Horovod and the trackers' services are imported in one place, inside a function."""
    assert misplaced_engines(source, ENGINES) == []


def test_hydra_is_the_command_lines_own() -> None:
    """Workers read one finished file: nothing outside the command line knows Hydra or OmegaConf."""
    users = {
        source.name
        for source in SOURCES
        for found in imports(source)
        if found.module.split(".")[0] in ("hydra", "omegaconf")
    }
    assert users
    assert {name for name in users if not name.startswith("distrib.cli.")} == set()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_is_public_is_documented(source: Source) -> None:
    """Every public module, class and function has a docstring."""
    assert undocumented(source) == []


def test_nobody_outside_asks_which_strategy_runs() -> None:
    """No ``isinstance`` on a strategy and no comparison with a strategy's name outside its folder."""
    own = {name for source in SOURCES for name, _ in classes(source, base="Strategy")}
    names = {path.stem for path in (CONF / "strategy").glob("*.yaml")}
    assert own >= {"Single", "DDP"}
    assert names >= {"single", "ddp"}

    outside = [source for source in SOURCES if not source.name.startswith("distrib.strategies")]
    assert [found for source in outside for found in strategy_tests(source, classes=own, names=names)] == []


def test_files_and_functions_stay_small() -> None:
    """No file over 400 lines, half under 150; half of all functions under 10, nine in ten under 30."""
    files = {source.name: source.num_lines for source in SOURCES if source.num_lines > 1}
    lines = [length for source in SOURCES for _, length in functions(source)]
    tenths = statistics.quantiles(lines, n=10)

    assert {name: size for name, size in files.items() if size > 400} == {}
    assert statistics.median(files.values()) < 150
    assert tenths[4] < 10
    assert tenths[8] < 30


def test_a_strategy_class_stays_under_150_lines() -> None:
    """A strategy that needs more shares through functions in ``distrib/parallel``."""
    sizes = {
        name: size
        for source in SOURCES
        if source.name.startswith("distrib.strategies.")
        for name, size in classes(source, base="Strategy")
    }
    assert sizes
    assert {name: size for name, size in sizes.items() if size >= 150} == {}


def heavy_modules_after(*modules: str) -> list[str]:
    """Which heavy packages a fresh interpreter holds after importing ``modules``."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {list(HEAVY)!r} if name in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    found: list[str] = json.loads(run.stdout)
    return found


def test_what_a_config_names_is_imported_without_heavy_libraries() -> None:
    """The command that composes a configuration reads every constructor and imports no torch for it."""
    modules = {target["_target_"].rpartition(".")[0] for _, target in configs()}
    assert modules
    assert heavy_modules_after(*sorted(modules), "distrib.config", "distrib.__main__") == []
    assert heavy_modules_after("numpy") == ["numpy"]


@pytest.mark.parametrize("target", CONFIGS)
def test_a_config_file_is_the_constructor_of_its_target(target: dict[str, Any]) -> None:
    """The keys of a file with a ``_target_`` are that constructor's keyword-only arguments, all of them."""
    parameters = constructor(target["_target_"])
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(target) - {"_target_"} == set(parameters)


BAD = '''
"""A module."""
import horovod.torch
from distrib.trainer import Trainer
from . import sibling

if TYPE_CHECKING:
    from distrib.config import TrainConfig


def choose(strategy, config):
    import deepspeed
    if isinstance(strategy, DDP) or config.strategy == "single":
        return 1
'''


def test_the_checks_bite() -> None:
    """Each check reports a small module that breaks its rule."""
    bad = Source.parse(BAD, name="distrib.parallel.bad")

    assert wrong_arrows(bad, {"parallel": {"core"}}, {}) == [
        "distrib.parallel.bad:4 imports distrib.trainer.Trainer",
        "distrib.parallel.bad:5 imports <relative>",
        "distrib.parallel.bad:8 imports distrib.config.TrainConfig",
    ]
    assert len(wrong_arrows(bad, {"parallel": {"trainer"}}, {"parallel": {"config"}})) == 1
    assert wrong_arrows(bad, {}, {}) == ["distrib.parallel.bad: no row for 'parallel' in the table of arrows"]
    assert len(misplaced_engines(bad, ENGINES)) == 2
    assert len(strategy_tests(bad, classes={"DDP"}, names={"single"})) == 2
    assert undocumented(bad) == ["distrib.parallel.bad.choose has no docstring"]
    assert dict(functions(bad)) == {"choose": 4}


def test_only_the_base_of_strategies_may_be_imported_by_the_trainer() -> None:
    """A dotted row of the table admits that module and not its neighbours."""
    source = Source.parse(
        "from distrib.strategies.base import Strategy\nfrom distrib.strategies.ddp import DDP",
        name="distrib.trainer",
    )
    assert wrong_arrows(source, {"trainer": {"strategies.base"}}, {}) == [
        "distrib.trainer:2 imports distrib.strategies.ddp.DDP"
    ]
