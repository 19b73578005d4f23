"""The next token, on documents packed into full sequences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distrib.errors import ConfigError, DataError
from distrib.tasks.base import Report, Task, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distrib.tasks.base import Example


class CausalLM(Task):
    """Sequences of exactly ``max_length`` tokens (the last may be shorter), cut from whole documents.

    A document is ``<begin> tokens <end>``; every token but ``<begin>`` is a target once, also
    across a cut. Position numbers restart with every document and every cut, from which
    transformers builds an attention mask that keeps documents apart (its function
    ``masking_utils.find_packed_sequence_indices``); a model without ``position_ids`` fails at once.
    """

    auto_class = "AutoModelForCausalLM"
    primary_metric = "bits_per_byte"
    higher_is_better = False

    def __init__(self, *, max_length: int = 256, max_new_tokens: int = 64) -> None:
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens

    def labels(self, records: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        return []

    def encode(
        self, records: Iterable[Mapping[str, Any]], *, tokenizer: Any, labels: Sequence[str]
    ) -> Iterator[Example]:
        from distrib.tasks.packing import pack

        begin, end = _borders(tokenizer)
        texts = map(_text, records)
        documents = (((begin, *_tokens(text, tokenizer), end), len(text.encode())) for text in texts)
        return pack(documents, length=self.max_length)

    def collate(self, examples: Sequence[Example], *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from distrib.core import IGNORED
        from distrib.tasks.tensors import flat, padded

        fill = {"input_ids": vocabulary.pad_token_id, "position_ids": 0, "labels": IGNORED}
        tensors = padded(examples, fill)
        del tensors["attention_mask"]  # transformers derives the documents' borders only where there is none
        return {**tensors, "num_bytes": flat(examples, "num_bytes")}

    def loss(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        from distrib.tasks.tensors import logits, summed_loss

        return summed_loss(logits(model, tensors, no_inputs=("num_bytes",)), tensors["labels"])

    def zeros(self, *, vocabulary: Vocabulary) -> dict[str, Tensor]:
        from torch import float64, zeros

        return {name: zeros((), dtype=float64) for name in ("loss", "targets", "bytes")}

    def evaluate(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from distrib.core import IGNORED
        from distrib.tasks.tensors import logits, loss_sums

        labels = tensors["labels"]
        real = (labels != IGNORED).any(-1)  # a ghost has bytes, but no target
        sums = loss_sums(logits(model, tensors, no_inputs=("num_bytes",)), labels)
        return {**sums, "bytes": (tensors["num_bytes"] * real).sum().double()}

    def report(self, sums: Mapping[str, Tensor], *, vocabulary: Vocabulary) -> Report:
        loss = float(sums["loss"] / sums["targets"].clamp(min=1))
        bits = float(sums["loss"] / sums["bytes"].clamp(min=1)) / math.log(2)
        perplexity = math.exp(loss) if loss < 700 else math.inf  # exp overflows a float at 709.8
        return Report(metrics={"loss": loss, "perplexity": perplexity, "bits_per_byte": bits})

    def predict(
        self, model: nn.Module, texts: Sequence[str], *, tokenizer: Any, labels: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The most likely next tokens after each text, at most ``max_new_tokens``."""
        return [{"text": text, "continuation": self._continue(model, text, tokenizer)} for text in texts]

    def _continue(self, model: nn.Module, text: str, tokenizer: Any) -> str:
        import torch

        from distrib.tasks.tensors import device_of, logits

        begin, end = _borders(tokenizer)
        tokens, device = [begin, *_tokens(text, tokenizer)], device_of(model)
        start = len(tokens)
        while len(tokens) < start + self.max_new_tokens and tokens[start:][-1:] != [end]:
            seen = torch.tensor([tokens[-self.max_length :]], device=device)
            tokens.append(int(logits(model, {"input_ids": seen})[0, -1].argmax()))
        continuation: str = tokenizer.decode(tokens[start:], skip_special_tokens=True)
        return continuation


def _text(record: Mapping[str, Any]) -> str:
    if "text" not in record:
        raise DataError(f"{record['where']}: no text; task=causal_lm reads one document a record")
    return str(record["text"])


def _tokens(text: str, tokenizer: Any) -> Sequence[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def _borders(tokenizer: Any) -> tuple[int, int]:
    end = tokenizer.eos_token_id
    if end is None:
        remedy = "a model whose tokenizer has an end-of-text token; it keeps documents apart"
        raise ConfigError("model", tokenizer.name_or_path, remedy)
    begin = tokenizer.bos_token_id
    return (end if begin is None else begin), end
