"""Finding the repeated blocks of a transformer, which is where it may be cut."""

from __future__ import annotations

from collections import Counter

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


def separate_blocks(model: nn.Module) -> list[nn.Module]:
    """The `transformer_blocks` that can be split apart: no parameter of theirs is used outside its block."""
    blocks = transformer_blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    parts = [set(block.parameters()) for block in blocks]
    rest = [set(module.parameters(recurse=False)) for module in model.modules() if module not in inside]
    users = Counter(parameter for part in [*parts, *rest] for parameter in part)
    return [block for block, part in zip(blocks, parts, strict=True) if all(users[p] == 1 for p in part)]


def _size(blocks: list[nn.Module]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())
