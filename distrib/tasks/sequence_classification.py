"""One class per text, as news topics or sentiment."""

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
"""Records tokenised at a time: keeps a fast tokenizer's threads busy and memory small."""


class SequenceClassification(Task):
    """Texts of at most ``max_length`` tokens, cut on the right; the loss counts examples."""

    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "accuracy"
    higher_is_better = True

    def __init__(self, *, max_length: int = 128) -> None:
        self.max_length = max_length

    def labels(self, records: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        names = sorted({_label(record) for record in records})
        if len(names) < 2:
            raise DataError(f"classification needs two classes at least; the training data has {names}")
        return names

    def encode(
        self, records: Iterable[Mapping[str, Any]], *, tokenizer: Any, labels: Sequence[str]
    ) -> Iterator[Example]:
        import numpy as np

        numbers = {name: number for number, name in enumerate(labels)}
        rest = iter(records)
        while chunk := list(islice(rest, CHUNK)):
            for record, tokens in zip(chunk, self._tokens(chunk, tokenizer), strict=True):
                label = np.array([_number(record, numbers)], np.int32)
                yield {"input_ids": np.array(tokens, np.int32), "labels": label}

    def _tokens(self, records: Sequence[Mapping[str, Any]], tokenizer: Any) -> Sequence[Sequence[int]]:
        texts = [_text(record) for record in records]
        tokens: list[list[int]] = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return tokens

    def collate(self, examples: Sequence[Example], *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from distrib.tasks.tensors import flat, padded

        tensors = padded(examples, {"input_ids": vocabulary.pad_token_id})
        return {**tensors, "labels": flat(examples, "labels")}

    def loss(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        from distrib.tasks.tensors import logits, summed_loss

        return summed_loss(logits(model, tensors), tensors["labels"])

    def zeros(self, *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from torch import float64, zeros

        num = len(vocabulary.labels)
        sums = {name: zeros((), dtype=float64) for name in ("loss", "targets")}
        return {**sums, "confusion": zeros(num, num, dtype=float64)}

    def evaluate(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.core import IGNORED
        from distrib.tasks.tensors import counts, logits, loss_sums

        scores, labels = logits(model, tensors), tensors["labels"]
        num, real = scores.shape[-1], labels != IGNORED
        cells = labels[real] * num + scores.argmax(-1)[real]
        return {**loss_sums(scores, labels), "confusion": counts(cells, num=num * num).view(num, num)}

    def report(self, sums: Mapping[str, Tensor], *, vocabulary: Vocabulary) -> Report:
        from distrib.tasks.tensors import class_table

        confusion, targets = sums["confusion"], sums["targets"].clamp(min=1)
        hit, predicted, true = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        classes = class_table(vocabulary.labels, hit=hit, predicted=predicted, true=true)
        metrics = {
            "accuracy": float(hit.sum() / targets),
            "f1": sum(float(row["f1"]) for row in classes) / len(classes),
            "loss": float(sums["loss"] / targets),
        }
        return Report(metrics=metrics, classes=classes, confusion=confusion.long().tolist())

    def predict(
        self, model: nn.Module, texts: Sequence[str], *, tokenizer: Any, labels: Sequence[str]
    ) -> list[dict[str, Any]]:
        from distrib.tasks.tensors import logits, tokenized

        inputs = tokenized(model, texts, tokenizer=tokenizer, max_length=self.max_length)
        shares = logits(model, inputs).double().softmax(-1)
        return [
            {
                "text": text,
                "label": labels[max(range(len(row)), key=row.__getitem__)],
                "scores": dict(zip(labels, row, strict=True)),
            }
            for text, row in zip(texts, shares.tolist(), strict=True)
        ]


def _text(record: Mapping[str, Any]) -> str:
    if "text" not in record:
        raise DataError(f"{record['where']}: no text; task=sequence_classification reads one text a record")
    return str(record["text"])


def _label(record: Mapping[str, Any]) -> str:
    if "label" not in record:
        raise ConfigError("data.label", None, "the column with the class, which this task needs")
    return str(record["label"])


def _number(record: Mapping[str, Any], numbers: Mapping[str, int]) -> int:
    label = _label(record)
    if label not in numbers:
        known = ", ".join(numbers)
        raise DataError(f"{record['where']}: label '{label}' never occurs in the training data ({known})")
    return numbers[label]
