"""A trained model as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from distrib.checkpoint import MANIFEST, PARTIAL, file_digest, read_json, write_json
from distrib.errors import CheckpointError, ConfigError
from distrib.inference.trained import RECIPE, Recipe


def export(model: Path, recipe: Recipe, *, output: Path) -> Path:
    """Copies a checkpoint's ``model`` folder to ``output``, checked against the manifest.

    The copy loads with transformers alone; ``distrib.json`` in it lets ``distrib predict`` use it too.
    Raises `ConfigError` where ``output`` holds something already, `CheckpointError` where the copy is
    not what the manifest lists.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError("--output", output, "is there already; give the name of a new folder")
    partial = output.with_name(output.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(model, partial)
        _verify(partial, manifest=model.parent / MANIFEST)
        write_json(partial / RECIPE, asdict(recipe))
        partial.replace(output)
    except OSError as error:
        raise CheckpointError(f"{output} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _verify(folder: Path, *, manifest: Path) -> None:
    """Raises `CheckpointError` naming the first file that the copy lacks or holds altered."""
    for name, expected in read_json(manifest)["files"].items():
        if name.startswith("model/"):
            copied = folder / name.removeprefix("model/")
            if not copied.is_file() or file_digest(copied) != expected["sha256"]:
                raise CheckpointError(f"{copied} is not what {manifest} lists: the copy failed")
