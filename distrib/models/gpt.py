"""A small GPT, trained from scratch with its own vocabulary."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from distrib.data.files import digest
from distrib.models.base import Model
from distrib.models.pretrained import IMPORTS, quiet, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from distrib.data.base import Corpus
    from distrib.tasks.base import Task, Vocabulary

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"


class GPT(Model):
    """A decoder of Llama's make (rotary positions, RMS norm, gated MLP) with tied embeddings.

    Its tokenizer is a byte-level BPE of ``vocab_size`` tokens trained on the training texts, so any
    text can be encoded and nothing is unknown.
    """

    imports = IMPORTS

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        max_positions: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.max_positions = max_positions
        self.dropout = dropout

    def tokenizer_fingerprint(self) -> str:
        return digest("byte_level_bpe", self.vocab_size, version("tokenizers"))

    def tokenizer(self, corpus: Corpus) -> Any:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

        bpe = ByteLevelBPETokenizer()
        texts = (record["text"] for record in corpus.train)
        bpe.train_from_iterator(
            texts, vocab_size=self.vocab_size, special_tokens=[END_OF_TEXT, PADDING], show_progress=False
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe._tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=PADDING,
        )

    def build(self, task: Task, vocabulary: Vocabulary) -> nn.Module:
        import transformers

        with quiet():
            auto: Any = getattr(transformers, task.auto_class)
            module: nn.Module = auto.from_config(self._config(vocabulary))
        return module.train()

    def describe(self, module: nn.Module, folder: Path, vocabulary: Vocabulary) -> None:
        write_config(module, folder)

    def load(self, folder: Path, task: Task, vocabulary: Vocabulary) -> nn.Module:
        from distrib.models.huggingface import HuggingFace

        return HuggingFace(path=str(folder)).load(folder, task, vocabulary)

    def _config(self, vocabulary: Vocabulary) -> Any:
        from transformers import LlamaConfig

        from distrib.models.pretrained import label_settings

        return LlamaConfig(
            vocab_size=vocabulary.vocab_size,
            hidden_size=self.hidden_size,
            # Llama's 8/3 of the hidden size, to a multiple of 64 for the sake of the matrix kernels
            intermediate_size=-(-self.hidden_size * 8 // 3 // 64) * 64,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.max_positions,
            attention_dropout=self.dropout,
            tie_word_embeddings=True,
            use_cache=False,
            pad_token_id=vocabulary.pad_token_id,
            **label_settings(vocabulary),
            **{name: vocabulary.special_tokens.get(name) for name in ("bos_token_id", "eos_token_id")},
        )
