"""A trained model with everything needed to use it, from wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.checkpoint import TRAINER, find_checkpoint, read_json
from distrib.errors import CheckpointError
from distrib.recipes import VOCABULARY
from distrib.targets import Target, build
from distrib.tasks.base import Report, Vocabulary

if TYPE_CHECKING:
    from torch import nn

    from distrib.core import PrecisionName
    from distrib.tasks.base import Example, Task

RECIPE = "distrib.json"
"""In an exported folder: the settings of a `Recipe`, which a checkpoint has in its configuration."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that turn a folder of weights into answers."""

    task: Target
    model: Target
    precision: PrecisionName = "fp32"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model ready to answer: in evaluation mode, on its device."""

    folder: Path
    """The Hugging Face folder it was loaded from."""
    task: Task
    model: nn.Module
    tokenizer: Any
    vocabulary: Vocabulary
    precision: PrecisionName

    def predict(self, texts: Iterable[str], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """The task's answer to each text, in order, reading ``batch_size`` texts ahead."""
        rest = iter(texts)
        while chunk := list(islice(rest, batch_size)):
            yield from self._predict(chunk)

    def evaluate(self, records: Iterable[Mapping[str, Any]], *, batch_size: int = 32) -> Report:
        """What the task reports over all records. Raises `DataError` for one it cannot use."""
        examples = list(self.task.encode(records, tokenizer=self.tokenizer, labels=self.vocabulary.labels))
        examples.sort(key=lambda example: -len(example["input_ids"]))  # as in training: little padding
        sums = self.task.zeros(vocabulary=self.vocabulary)
        for start in range(0, len(examples), batch_size):
            for name, value in self._evaluate(examples[start : start + batch_size]).items():
                sums[name] += value.cpu()
        return self.task.report(sums, vocabulary=self.vocabulary)

    def _predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        with self._quietly():
            return self.task.predict(
                self.model, texts, tokenizer=self.tokenizer, labels=self.vocabulary.labels
            )

    def _evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        tensors = self.task.collate(examples, vocabulary=self.vocabulary)
        with self._quietly():
            return self.task.evaluate(self.model, {name: t.to(device) for name, t in tensors.items()})

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Without gradients, in the arithmetic it was trained in."""
        import torch

        from distrib.parallel.precision import autocast

        forward = autocast(self.precision, next(self.model.parameters()).device)
        with torch.inference_mode(), forward():
            yield


def find(path: Path, *, best: bool = False, notice: Callable[[str], None] = print) -> tuple[Path, Recipe]:
    """The model folder that ``path`` means, and its recipe.

    ``path`` is a run directory, a checkpoint or a folder made by ``distrib export``.
    Raises `CheckpointError` where it is none of them or is damaged.
    """
    if (path / RECIPE).exists():
        return path, recipe_of(read_json(path / RECIPE), source=path / RECIPE)
    checkpoint = find_checkpoint(path, best=best, notice=notice)
    config = read_json(checkpoint / TRAINER).get("config", {})
    recipe = {**config, "precision": (config.get("precision") or {}).get("name", "fp32")}
    return checkpoint / "model", recipe_of(recipe, source=checkpoint / TRAINER)


def recipe_of(values: Mapping[str, Any], *, source: Path) -> Recipe:
    """The recipe in a file's values. Raises `CheckpointError` naming the file."""
    if not values.get("task") or not values.get("model"):
        raise CheckpointError(f"{source} does not say which task and model these weights are for")
    return Recipe(
        task=dict(values["task"]), model=dict(values["model"]), precision=values.get("precision", "fp32")
    )


def load_trained(
    folder: Path, recipe: Recipe, *, device: str | None = None, plugins: Sequence[str] = ()
) -> Trained:
    """The model in ``folder``, on ``device`` (null: a GPU where there is one).

    Raises `CheckpointError` where the folder cannot be loaded, `ConfigError` where its recipe names
    a class outside distrib and ``plugins``.
    """
    import torch

    task = build(recipe.task, key="task", plugins=plugins)
    maker = build(recipe.model, key="model", plugins=plugins)
    vocabulary = Vocabulary(**read_json(folder / VOCABULARY))
    try:
        model, tokenizer = maker.load(folder, task, vocabulary), _tokenizer(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Trained(
        folder=folder,
        task=task,
        model=model.to(place).eval(),
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        # A model trained in fp16 answers in fp32 where there is only a CPU: its weights are fp32.
        precision="fp32" if recipe.precision == "fp16" and place.type == "cpu" else recipe.precision,
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
