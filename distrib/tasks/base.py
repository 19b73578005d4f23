"""A task: how examples become tensors, what their loss is, and which numbers describe the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Example = Mapping[str, np.ndarray[Any, Any]]
    """One encoded example: 1-D integer arrays by name. ``input_ids`` and ``labels`` are always there."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What held-out sums say: numbers for the log, a table for the screen and the page."""

    metrics: Mapping[str, float]
    """By plain name (``accuracy``, ``f1``, ``loss``); the trainer logs them as ``eval/<name>``."""
    classes: Sequence[Mapping[str, float | str]] = ()
    """One row per class: ``name, precision, recall, f1, support``; empty where there are none."""
    confusion: Sequence[Sequence[int]] = ()
    """Rows are true classes, columns predicted ones, in the order of ``classes``; may be empty."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the encoded data tells the model and the collation. Stored beside the encoded data."""

    labels: Sequence[str] = ()
    """Class names in the order of their numbers; empty for language models."""
    vocab_size: int = 0
    pad_token_id: int = 0
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Other token numbers the model's configuration needs, as ``bos_token_id`` or ``eos_token_id``."""


class Task(ABC):
    """One file per task. Constructor arguments are the keys of ``conf/task/<name>.yaml``.

    Like a strategy's, a task's file imports torch, numpy and transformers inside methods.
    """

    auto_class: str
    """The transformers class that builds a model for this task, as ``AutoModelForCausalLM``."""
    primary_metric: str
    """The metric that says which checkpoint is best."""
    higher_is_better: bool

    @abstractmethod
    def labels(self, records: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        """The class names found in raw training records, sorted; empty for language models."""

    @abstractmethod
    def encode(
        self, records: Iterable[Mapping[str, Any]], *, tokenizer: Any, labels: Sequence[str]
    ) -> Iterator[Example]:
        """Tokenised examples from raw records. Raises `DataError` with the record's ``where``."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        """One batch of model inputs and ``labels``, padded to its own longest example."""

    @abstractmethod
    def loss(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over targets (labels that are not `IGNORED`): a differentiable scalar."""

    @abstractmethod
    def zeros(self, *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        """The sums of no examples at all: the names and shapes `evaluate` returns, in float64."""

    @abstractmethod
    def evaluate(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over one batch: ``loss``, ``targets`` and whatever `report` needs; float64."""

    @abstractmethod
    def report(self, sums: Mapping[str, Tensor], *, vocabulary: Vocabulary) -> Report:
        """The metrics that follow from the sums over all held-out examples."""

    @abstractmethod
    def predict(
        self, model: nn.Module, texts: Sequence[str], *, tokenizer: Any, labels: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One JSON-able answer per text, for ``distrib predict``."""
