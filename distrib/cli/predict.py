"""``distrib predict``: what a trained model says about texts, as JSON Lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO

from distrib.errors import ConfigError

HELP = "Ask a trained model about texts: JSON Lines out."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("path", type=Path, help="a run directory, checkpoint or exported folder")
    parser.add_argument(
        "files", type=Path, nargs="*", help=".txt with a text a line, or .csv, .tsv, .jsonl, .parquet"
    )
    parser.add_argument("--text", action="append", default=[], help="a text; may be given again and again")
    parser.add_argument("--text-column", default="text", help="the column of the files with the text")
    parser.add_argument("--output", type=Path, help="a file for the answers instead of the screen")
    parser.add_argument("--batch-size", type=int, default=32, help="texts at a time")
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the newest")
    parser.add_argument("--device", help="cpu or cuda; otherwise a GPU where there is one")
    parser.add_argument("--plugin", action="append", default=[], help="a package whose classes may be used")


def run(args: argparse.Namespace) -> int:
    """Writes one JSON object per text, in the order of the texts."""
    if not args.text and not args.files:
        raise ConfigError("--text", None, 'give texts, as --text "…", or files')
    if args.batch_size < 1:
        raise ConfigError("--batch-size", args.batch_size, "needs a text at a time at least")
    from distrib.inference.trained import find, load_trained

    folder, recipe = find(args.path, best=args.best, notice=partial(print, file=sys.stderr))
    trained = load_trained(folder, recipe, device=args.device, plugins=args.plugin)
    with _opened(args.output) as output:
        for answer in trained.predict(_texts(args), batch_size=args.batch_size):
            output.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return 0


def _texts(args: argparse.Namespace) -> Iterator[str]:
    from distrib.inference.texts import read_texts

    return chain(args.text, *(read_texts(file, column=args.text_column) for file in args.files))


def _opened(path: Path | None) -> AbstractContextManager[TextIO]:
    if path is None:
        return nullcontext(sys.stdout)
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError("--output", path, f"cannot be written: {error.strerror}") from error
