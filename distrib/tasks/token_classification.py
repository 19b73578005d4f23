"""One tag per word, as named entities: entity-level scores by seqeval's default definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from distrib.errors import ConfigError, DataError
from distrib.tasks.base import Report, Task, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distrib.tasks.base import Example

CHUNK = 1000
"""Records tokenised at a time."""
COUNTS = ("hit", "predicted", "true")
"""Sums per entity type."""


class TokenClassification(Task):
    """Words with BIO tags; a word's tag sits on its first subword, the other subwords are no targets.

    Tags are numbered ``O, B-x, I-x, B-y, I-y, …``, which `distrib.tasks.entities` relies on.
    """

    auto_class = "AutoModelForTokenClassification"
    primary_metric = "f1"
    higher_is_better = True

    def __init__(self, *, max_length: int = 128) -> None:
        self.max_length = max_length

    def labels(self, records: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        kinds = {kind for record in records for kind in _kinds(record)}
        if not kinds:
            raise DataError("the training data has no entity: every tag is O")
        return ["O", *(f"{prefix}-{kind}" for kind in sorted(kinds) for prefix in "BI")]

    def encode(
        self, records: Iterable[Mapping[str, Any]], *, tokenizer: Any, labels: Sequence[str]
    ) -> Iterator[Example]:
        if not tokenizer.is_fast:
            raise ConfigError(
                "model.path", tokenizer.name_or_path, "a model with a fast tokenizer, which knows words"
            )
        numbers = {name: number for number, name in enumerate(labels)}
        rest = iter(records)
        while chunk := list(islice(rest, CHUNK)):
            tokens = self._tokens([_words(record) for record in chunk], tokenizer)
            for place, record in enumerate(chunk):
                yield _aligned(record, tokens["input_ids"][place], tokens.word_ids(place), numbers=numbers)

    def _tokens(self, words: Sequence[Sequence[str]], tokenizer: Any, **options: Any) -> Any:
        return tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=self.max_length, **options
        )

    def collate(self, examples: Sequence[Example], *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from distrib.core import IGNORED
        from distrib.tasks.tensors import padded

        return padded(examples, {"input_ids": vocabulary.pad_token_id, "labels": IGNORED})

    def loss(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        from distrib.tasks.tensors import logits, summed_loss

        return summed_loss(logits(model, tensors), tensors["labels"])

    def zeros(self, *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from torch import float64, zeros

        sums = {name: zeros((), dtype=float64) for name in ("loss", "targets")}
        num_kinds = len(vocabulary.labels) // 2
        return {**sums, **{name: zeros(num_kinds, dtype=float64) for name in COUNTS}}

    def evaluate(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.tasks.entities import entity_counts
        from distrib.tasks.tensors import logits, loss_sums

        scores, labels = logits(model, tensors), tensors["labels"]
        entities = entity_counts(scores.argmax(-1), labels, num_tags=scores.shape[-1])
        return {**loss_sums(scores, labels), **entities}

    def report(self, sums: Mapping[str, Tensor], *, vocabulary: Vocabulary) -> Report:
        from distrib.tasks.tensors import class_table

        names = [tag[2:] for tag in vocabulary.labels[1::2]]
        parts = {name: sums[name] for name in COUNTS}
        (whole,) = class_table(["all"], **{name: part.sum()[None] for name, part in parts.items()})
        metrics = {name: whole[name] for name in ("precision", "recall", "f1")}
        loss = float(sums["loss"] / sums["targets"].clamp(min=1))
        return Report(metrics={**metrics, "loss": loss}, classes=class_table(names, **parts))

    def predict(
        self, model: nn.Module, texts: Sequence[str], *, tokenizer: Any, labels: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Entities of texts that are cut into words at white space."""
        from distrib.tasks.tensors import device_of, logits

        words = [text.split() or [""] for text in texts]
        tokens = self._tokens(words, tokenizer, padding=True, return_tensors="pt")
        inputs = {name: tokens[name].to(device_of(model)) for name in ("input_ids", "attention_mask")}
        tags = logits(model, inputs).argmax(-1).tolist()
        found = [
            _found(words[place], _firsts(tokens.word_ids(place)), [labels[tag] for tag in tags[place]])
            for place in range(len(texts))
        ]
        return [{"text": text, "entities": entities} for text, entities in zip(texts, found, strict=True)]


def _words(record: Mapping[str, Any]) -> Sequence[str]:
    if "words" not in record:
        raise DataError(
            f"{record['where']}: no list of words; task=token_classification reads words and their tags"
        )
    words: Sequence[str] = record["words"]
    return words


def _kinds(record: Mapping[str, Any]) -> Iterator[str]:
    _words(record)
    for tag in record["tags"]:
        prefix, dash, kind = tag.partition("-")
        if tag != "O" and not (prefix in ("B", "I") and dash and kind):
            raise DataError(f"{record['where']}: tag '{tag}' is not O, B-<type> or I-<type>")
        if kind:
            yield kind


def _firsts(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Position of each word's first subword; a word that was cut off or has no token is left out."""
    firsts: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            firsts.setdefault(word, position)
    return firsts


def _found(words: Sequence[str], firsts: Mapping[int, int], tags: Sequence[str]) -> list[dict[str, str]]:
    """The entities of one text, from the tags at its words' first subwords."""
    from distrib.tasks.entities import entities

    seen = [words[word] for word in firsts]
    spans = entities([tags[position] for position in firsts.values()])
    return [{"type": kind, "text": " ".join(seen[start:end])} for kind, start, end in spans]


def _aligned(
    record: Mapping[str, Any],
    tokens: Sequence[int],
    word_ids: Sequence[int | None],
    *,
    numbers: Mapping[str, int],
) -> Example:
    import numpy as np

    from distrib.core import IGNORED

    labels = np.full(len(tokens), IGNORED, np.int32)
    for word, position in _firsts(word_ids).items():
        tag = record["tags"][word]
        if tag not in numbers:
            raise DataError(f"{record['where']}: tag '{tag}' never occurs in the training data")
        labels[position] = numbers[tag]
    return {"input_ids": np.array(tokens, np.int32), "labels": labels}
