"""``distrib export``: a trained model as a plain Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

HELP = "Copy a trained model out as a Hugging Face folder that loads without distrib."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("path", type=Path, help="a run directory or checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the newest")


def run(args: argparse.Namespace) -> int:
    """Exports and says how the folder is used."""
    from distrib.inference.export import export
    from distrib.inference.trained import find
    from distrib.targets import locate

    model, recipe = find(args.path, best=args.best, notice=partial(print, file=sys.stderr))
    output = export(model, recipe, output=args.output)
    print(f"exported {model} to {output}")
    if str(recipe.task["_target_"]).startswith("distrib."):
        auto_class = getattr(locate(recipe.task, key="task", plugins=()), "auto_class", "AutoModel")
        print(f'use it: transformers.{auto_class}.from_pretrained("{output}")')
    return 0
