"""From a source to encoded sets: tokenised once, kept on disk by content."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distrib.data.base import Source
from distrib.data.cache import ensure
from distrib.data.encoded import EncodedSet, write
from distrib.data.files import digest
from distrib.errors import DataError
from distrib.models.base import Model
from distrib.tasks.base import Task, Vocabulary

FORMAT = 1
"""Raised whenever the layout of the cached folder changes."""
SPECIAL_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Encoded data, ready to be read by number, and what came to light on the way."""

    train: EncodedSet
    heldout: EncodedSet
    vocabulary: Vocabulary
    tokenizer_dir: Path
    """A folder that ``AutoTokenizer.from_pretrained`` loads."""
    notes: Mapping[str, int | str]


def prepare(
    source: Source, task: Task, model: Model, *, cache_dir: Path, is_builder: bool = True
) -> Prepared:
    """Encoded data of ``source`` for ``task`` and the tokenizer of ``model``.

    Built on first use under ``cache_dir``, keyed by the raw content, the tokenizer, and the task's
    options and code; after that neither raw data nor tokenizer is loaded. One process of a machine
    builds while the others wait (`distrib.data.cache.ensure`).

    Raises `DataError` naming file and line, or the reason why nothing can be trained on.
    """
    folder = cache_dir / cache_key(source, task, model)
    ensure(folder, lambda empty: _build(empty, source, task, model), is_builder=is_builder)
    return Prepared(
        train=EncodedSet.open(folder / "train"),
        heldout=EncodedSet.open(folder / "heldout"),
        vocabulary=Vocabulary(**_read(folder, "vocabulary")),
        tokenizer_dir=folder / "tokenizer",
        notes=_read(folder, "notes"),
    )


def cache_key(source: Source, task: Task, model: Model) -> str:
    """Changes with anything that changes the encoded data."""
    kind = type(task)
    code = inspect.getsource(inspect.getmodule(kind) or kind)
    encoding = [kind.__qualname__, vars(task), code]
    return digest(FORMAT, source.fingerprint(), model.tokenizer_fingerprint(), encoding)[:32]


def _build(folder: Path, source: Source, task: Task, model: Model) -> None:
    corpus = source.load()
    tokenizer = model.tokenizer(corpus)
    labels = task.labels(corpus.train)
    counts = {}
    for name, records in {"train": corpus.train, "heldout": corpus.heldout}.items():
        counts[name] = write(folder / name, task.encode(records, tokenizer=tokenizer, labels=labels))
        if not counts[name]:
            raise DataError(
                f"no {name} examples: {len(records)} records were read, none of them with a target"
            )
    tokenizer.save_pretrained(folder / "tokenizer")
    _write(folder, "vocabulary", asdict(_vocabulary(tokenizer, labels=labels)))
    examples = {f"{name}_examples": count for name, count in counts.items()}
    _write(folder, "notes", {**examples, **corpus.notes})


def _vocabulary(tokenizer: Any, *, labels: Any) -> Vocabulary:
    special = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
    pad = tokenizer.pad_token_id
    return Vocabulary(
        labels=list(labels),
        vocab_size=len(tokenizer),
        pad_token_id=special["eos_token_id"] or 0 if pad is None else pad,
        special_tokens={name: number for name, number in special.items() if number is not None},
    )


def _read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def _write(folder: Path, name: str, value: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value, indent=1))
