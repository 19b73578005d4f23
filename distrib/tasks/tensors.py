"""What every task does with tensors: padding, calling the model, a loss that is a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from distrib.core import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from distrib.tasks.base import Example


def padded(examples: Sequence[Example], fill: Mapping[str, int]) -> dict[str, Tensor]:
    """Columns of one entry per token as int64 ``[examples, longest]``, filled up on the right.

    ``fill`` names the columns and what follows their end. Besides them there is ``attention_mask``:
    1 where there is a token.
    """
    lengths = np.array([len(example["input_ids"]) for example in examples])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tensors = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
    for name, value in fill.items():
        out = np.full(mask.shape, value, dtype=np.int64)
        out[mask] = np.concatenate([example[name] for example in examples])
        tensors[name] = torch.from_numpy(out)
    return tensors


def flat(examples: Sequence[Example], name: str) -> Tensor:
    """A column of one number per example, as int64 ``[examples]``."""
    return torch.from_numpy(np.concatenate([example[name] for example in examples]).astype(np.int64))


def logits(model: nn.Module, tensors: Mapping[str, Tensor], *, no_inputs: Sequence[str] = ()) -> Tensor:
    """The model's scores, whether it returns a tensor or an output object with ``logits``.

    It is given all tensors but ``labels`` and those named as ``no_inputs``.
    """
    inputs = {name: t for name, t in tensors.items() if name != "labels" and name not in no_inputs}
    output: Any = model(**inputs)
    scores: Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return scores


def summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over labels that are not `IGNORED`, in fp32 at least.

    ``scores`` is ``[…, classes]`` and ``labels`` ``[…]``.
    """
    wide = scores.reshape(-1, scores.shape[-1])
    wide = wide if wide.dtype == torch.float64 else wide.float()
    return nn.functional.cross_entropy(wide, labels.reshape(-1), ignore_index=IGNORED, reduction="sum")


def loss_sums(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """``loss`` and ``targets``, which every task reports, in float64."""
    loss = summed_loss(scores.detach(), labels)
    return {"loss": loss.double(), "targets": (labels != IGNORED).sum().double()}


def counts(numbers: Tensor, *, num: int) -> Tensor:
    """How often each of ``0 … num-1`` occurs, in float64."""
    return torch.bincount(numbers, minlength=num).double()


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 0 where there is nothing to divide by."""
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.zeros_like(part))


def class_table(
    names: Sequence[str], *, hit: Tensor, predicted: Tensor, true: Tensor
) -> list[dict[str, Any]]:
    """Rows of a per-class report from counts of hits, predictions and true cases."""
    precision, recall = ratio(hit, predicted), ratio(hit, true)
    f1 = ratio(2 * hit, predicted + true)
    columns = zip(names, precision.tolist(), recall.tolist(), f1.tolist(), true.tolist(), strict=True)
    keys = ("name", "precision", "recall", "f1", "support")
    return [dict(zip(keys, row, strict=True)) for row in columns]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def tokenized(
    model: nn.Module, texts: Sequence[str], *, tokenizer: Any, max_length: int
) -> dict[str, Tensor]:
    """Texts as padded model inputs, on the model's device."""
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    encoded = tokenizer(list(texts), **options)
    return {name: encoded[name].to(device_of(model)) for name in ("input_ids", "attention_mask")}
