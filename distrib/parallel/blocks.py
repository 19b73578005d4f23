"""Finding the repeated blocks of a transformer, which is where it may be cut."""

from __future__ import annotations

from torch import nn


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks in order: the `nn.ModuleList` with most parameters whose members share a class.

    Found from the structure, so that it holds for any model; empty where nothing repeats.
    """
    candidates = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1
    ]
    return max(candidates, key=_size, default=[])


def _size(blocks: list[nn.Module]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())
