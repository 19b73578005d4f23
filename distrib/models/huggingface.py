"""Any model of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distrib.errors import ConfigError
from distrib.models.base import Model
from distrib.models.pretrained import (
    IMPORTS,
    absent,
    in_turn,
    label_settings,
    locate,
    quiet,
    tokenizer_digest,
    write_config,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from distrib.data.base import Corpus
    from distrib.tasks.base import Task, Vocabulary


class HuggingFace(Model):
    """The task's class of the transformers library, with pretrained weights or from its configuration.

    ``path`` is a folder, a hub name, or ``package:<package>/<folder>`` for weights that an
    installed package holds. ``config`` overrides keys of the model's own configuration.
    """

    imports = IMPORTS

    def __init__(
        self, *, path: str, pretrained: bool = True, config: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.pretrained = pretrained
        self.config = config or {}

    def tokenizer_fingerprint(self) -> str:
        return tokenizer_digest(locate(self.path))

    def tokenizer(self, corpus: Corpus) -> Any:
        from transformers import AutoTokenizer

        with quiet():
            return AutoTokenizer.from_pretrained(locate(self.path))

    def build(self, task: Task, vocabulary: Vocabulary) -> nn.Module:
        import torch

        auto, config = _auto_class(task), self._config(vocabulary)
        with quiet(), in_turn():
            if not self.pretrained:
                return _trainable(auto.from_config(config, dtype=torch.float32))
            try:
                return _trainable(auto.from_pretrained(self._weights(), config=config, dtype=torch.float32))
            except OSError as error:
                raise absent(self.path) from error

    def describe(self, module: nn.Module, folder: Path, vocabulary: Vocabulary) -> None:
        write_config(module, folder)

    def load(self, folder: Path, task: Task, vocabulary: Vocabulary) -> nn.Module:
        import torch

        with quiet():
            return _trainable(_auto_class(task).from_pretrained(folder, dtype=torch.float32))

    def _config(self, vocabulary: Vocabulary) -> Any:
        from transformers import AutoConfig

        settings: dict[str, Any] = {**label_settings(vocabulary), **self.config}
        if not self.pretrained:
            settings = {"vocab_size": vocabulary.vocab_size, **settings}
        with quiet():
            try:
                config = AutoConfig.from_pretrained(locate(self.path), **settings)
            except ValueError as error:
                raise ConfigError("model.config", dict(self.config), str(error)) from error
        if vocabulary.labels and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = vocabulary.pad_token_id  # decoders find a text's last token by it
        return config

    def _weights(self) -> str:
        """A hub name stays one: transformers fetches whichever weight files that model has."""
        folder = locate(self.path)
        return str(folder) if any(folder.glob("*.safetensors*")) else self.path


def _auto_class(task: Task) -> Any:
    import transformers

    return getattr(transformers, task.auto_class)


def _trainable(module: Any) -> nn.Module:
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False  # keys and values of earlier calls: only generation has any
    trained: nn.Module = module.train()
    return trained
