"""Where a model comes from, with the tokenizer that belongs to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from distrib.data.base import Corpus
    from distrib.tasks.base import Task, Vocabulary


class Model(ABC):
    """A recipe for one model. Constructor arguments are the keys of ``conf/model/<name>.yaml``.

    Parameters that no loss of the task reaches are absent or frozen, so that every strategy finds
    a gradient on each parameter that asks for one.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that it takes long to import: where a launcher forks the ranks, it does so once for all."""

    @abstractmethod
    def tokenizer_fingerprint(self) -> str:
        """A digest of everything but the corpus that decides how text becomes tokens."""

    @abstractmethod
    def tokenizer(self, corpus: Corpus) -> Any:
        """A ``PreTrainedTokenizer``: a finished one, or one trained on ``corpus.train``."""

    @abstractmethod
    def build(self, task: Task, vocabulary: Vocabulary) -> nn.Module:
        """The model before its first step: on the CPU, in fp32; new weights from torch's generator."""

    @abstractmethod
    def describe(self, module: nn.Module, folder: Path, vocabulary: Vocabulary) -> None:
        """Writes the ``config.json`` with which transformers' auto classes load weights saved beside it."""

    @abstractmethod
    def load(self, folder: Path, task: Task, vocabulary: Vocabulary) -> nn.Module:
        """The trained model from a checkpoint's ``model`` folder, on the CPU, in fp32."""
