"""``distrib evaluate``: the task's metrics of a trained model, on its own data or on other data."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distrib.config import RunConfig
    from distrib.inference.trained import Trained
    from distrib.tasks.base import Report

HELP = "Measure a trained model on held-out data, its own or other: data=table data.path=new.csv."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("path", type=Path, help="a run directory or one of its checkpoints")
    parser.add_argument(
        "overrides", nargs="*", help="settings that differ from the run's, as data.path=new.csv"
    )
    parser.add_argument(
        "--split", choices=("heldout", "train", "all"), default="heldout", help="which records of the data"
    )
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the newest")
    parser.add_argument("--device", help="cpu or cuda; otherwise a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the report of the chosen split."""
    from distrib.cli.compose import compose
    from distrib.inference.trained import Recipe, find, load_trained

    config = compose([f"resume={args.path}", *args.overrides])
    folder, _ = find(args.path, best=args.best, notice=partial(print, file=sys.stderr))
    recipe = Recipe(task=config.task, model=config.model, precision=config.precision.name)
    trained = load_trained(folder, recipe, device=args.device, plugins=config.plugins)
    report = evaluate(trained, config, split=args.split)
    if args.json:
        print(json.dumps({"checkpoint": str(folder.parent), "split": args.split, **asdict(report)}))
    else:
        _show(report, checkpoint=folder.parent, split=args.split)
    return 0


def evaluate(trained: Trained, config: RunConfig, *, split: str) -> Report:
    """The report over a split of the configured data, read and split as in training.

    Raises `DataError` where there is nothing in it, or a label that the model does not know.
    """
    from distrib.errors import DataError
    from distrib.targets import build

    corpus = build(config.data, key="data", plugins=config.plugins).load()
    splits = {"heldout": corpus.heldout, "train": corpus.train, "all": [*corpus.train, *corpus.heldout]}
    if not splits[split]:
        raise DataError(f"the {split} split holds no record; choose another with --split")
    return trained.evaluate(splits[split], batch_size=config.train.eval_batch_size)


def _show(report: Report, *, checkpoint: Path, split: str) -> None:
    from rich.console import Console

    from distrib.tracking.closing import evaluation_tables, shown

    screen = Console(width=None if sys.stdout.isatty() else 100)
    screen.print(f"checkpoint      {shown(checkpoint)}", markup=False, highlight=False, soft_wrap=True)
    for part in evaluation_tables(report, split=split):
        screen.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
