"""The proof that a strategy gives the one-process trajectory, on a model small enough for every test.

A strategy from another package proves itself like ours: with `Workers`, `Proof` and `train`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distrib.config import Target
from distrib.core import IGNORED, Batch, Job, PrecisionName
from distrib.parallel.state import named_weights
from distrib.state import StateReader, StateWriter
from distrib.strategies.base import Strategy
from distrib.targets import build
from distrib.world import World

VOCABULARY, WIDTH, HEADS, LONGEST = 40, 16, 2, 12
NUM_EXAMPLES = 37


class Block(nn.Module):
    """Pre-norm attention and feed-forward with dropout everywhere.

    Queries, keys and values have no bias: the gradient of a key's bias is zero but for rounding,
    and AdamW would turn that noise into steps of full size.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attention_in = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        rate = self.dropout if self.training else 0.0
        mixed = self.attention_in(self.norms[0](hidden)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        seen = self.attention_out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        hidden = hidden + F.dropout(seen, rate, self.training)
        return hidden + F.dropout(self.feed_forward(self.norms[1](hidden)), rate, self.training)


class TinyTransformer(nn.Module):
    """A two-block language model with dropout, LayerNorm, a tied output and a buffer: 7 k parameters."""

    def __init__(self, *, dropout: float, tied_blocks: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.1)  # tied: std 1 would start at a loss of 16
        self.blocks = nn.ModuleList([Block(dropout=dropout), Block(dropout=dropout)])
        if tied_blocks:
            self.blocks[1].attention_in = self.blocks[0].attention_in
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.output(hidden) / self.temperature
        return logits


def loss(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy summed over targets."""
    logits = model(tensors["input_ids"])
    return F.cross_entropy(
        logits.flatten(0, 1), tensors["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def evaluate(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Summed loss, right answers and targets."""
    labels = tensors["labels"]
    right = (model(tensors["input_ids"]).argmax(-1) == labels) & (labels != IGNORED)
    return {
        "loss": loss(model, tensors).double(),
        "right": right.sum(dtype=torch.float64),
        "targets": (labels != IGNORED).sum(dtype=torch.float64),
    }


def examples() -> list[Tensor]:
    """Token sequences of very different lengths: a mean of means would show at once."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(2, LONGEST + 1, (NUM_EXAMPLES,), generator=generator)
    return [torch.randint(1, VOCABULARY, (int(n),), generator=generator) for n in lengths]


def collate(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """Pads inputs with 0 and labels with `IGNORED`; each position predicts the next token."""
    inputs = nn.utils.rnn.pad_sequence([s[:-1] for s in sequences], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([s[1:] for s in sequences], batch_first=True, padding_value=IGNORED)
    return {"input_ids": inputs, "labels": labels}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One run: everything that defines it, and how it is executed. Picklable."""

    strategy: Target
    plugins: tuple[str, ...] = ()
    precision: PrecisionName = "fp64"
    steps: int = 20
    first_step: int = 0
    global_batch_size: int = 10
    microbatch_size: int = 4
    dropout: float = 0.1
    max_grad_norm: float | None = 0.5
    lr: float = 3e-3
    momentum_sgd: bool = False
    momentum: float = 0.9
    """Of ``momentum_sgd``."""
    load_from: str | None = None
    save_to: str | None = None
    nan_at: tuple[int, int] | None = None
    """(step, microbatch index) whose loss is NaN."""
    tied_blocks: bool = False
    """Both blocks use one weight."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What one rank saw."""

    losses: list[float]
    """Mean loss over the targets of each step's global batch."""
    grad_norms: list[float]
    updated: list[bool]
    sums: Mapping[str, float]
    """An evaluation over all examples after the last step."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The final weights as a checkpoint holds them; rank 0 only."""


def job_for(proof: Proof) -> Job:
    """The recipes of a proof."""
    dtype = torch.float64 if proof.precision == "fp64" else torch.float32

    def build_model() -> nn.Module:
        torch.manual_seed(3)
        return TinyTransformer(dropout=proof.dropout, tied_blocks=proof.tied_blocks).to(dtype)

    def build_optimizer(parameters: Any) -> torch.optim.Optimizer:
        tensors = [tensor for _, tensor in parameters]
        if proof.momentum_sgd:
            return torch.optim.SGD(tensors, lr=1.0, momentum=proof.momentum)
        return torch.optim.AdamW(tensors, lr=1.0, weight_decay=0.1, fused=True)

    def poisoned_loss(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        plain = {name: value for name, value in tensors.items() if name != "poison"}
        return loss(model, plain) + (float("nan") if "poison" in tensors else 0.0)

    return Job(
        build_model=build_model,
        build_optimizer=build_optimizer,
        loss=poisoned_loss,
        evaluate=evaluate,
        lr=lambda step: proof.lr / (1 + 0.1 * step),
        num_microbatches=-(-proof.global_batch_size // proof.microbatch_size),
        max_grad_norm=proof.max_grad_norm,
        precision=proof.precision,
        seed=11,
    )


def global_batch(proof: Proof, step: int) -> list[Batch]:
    """The microbatches of step ``step``, in order; the last may be smaller."""
    data = examples()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(100 + step))
    chosen = [data[int(i)] for i in order[: proof.global_batch_size]]
    targets = sum(len(sequence) - 1 for sequence in chosen)
    pieces = [chosen[i : i + proof.microbatch_size] for i in range(0, len(chosen), proof.microbatch_size)]
    batches = []
    for index, piece in enumerate(pieces):
        tensors = collate(piece)
        if proof.nan_at == (step, index):
            tensors["poison"] = torch.ones(())
        batches.append(Batch(tensors=tensors, index=index, step_targets=targets))
    return batches


def train(world: World, proof: Proof) -> Trajectory | None:
    """Runs a proof on this rank; None on a rank that only serves."""
    strategy: Strategy = build(proof.strategy, key="strategy", plugins=proof.plugins)
    try:
        strategy.setup(job_for(proof), world)
        return strategy.run(partial(_steps, strategy, world, proof))
    finally:
        strategy.close()


def _steps(strategy: Strategy, world: World, proof: Proof) -> Trajectory:
    if proof.load_from:
        strategy.load(StateReader(Path(proof.load_from)))
    losses, norms, updated = [], [], []
    for step in range(proof.first_step, proof.steps):
        everything = global_batch(proof, step)
        mine = list(strategy.shard.take(everything, step=step)) or [everything[0].ghost()]
        result = strategy.train_step(mine, step)
        total = strategy.reduce({"loss": result.loss})["loss"].item()
        losses.append(total / everything[0].step_targets)
        norms.append(float(result.grad_norm))
        updated.append(result.updated)
    sums = evaluation(strategy)
    weights = saved_weights(strategy, world, proof)
    return Trajectory(losses=losses, grad_norms=norms, updated=updated, sums=sums, weights=weights)


def evaluation(strategy: Strategy, *, batch_size: int = 5) -> dict[str, float]:
    """Sums over all examples, each on one shard."""
    data = examples()
    batches = [
        Batch(tensors=collate(data[i : i + batch_size]), index=i, step_targets=1)
        for i in range(0, len(data), batch_size)
    ]
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", "right", "targets")}
    while len(batches) % strategy.shard.count:  # every shard evaluates equally often, as in training
        batches.append(batches[0].ghost())
    for batch in strategy.shard.take(batches):
        for name, value in strategy.eval_step(batch).items():
            sums[name] += value
    return {name: value.item() for name, value in strategy.reduce(sums).items()}


def saved_weights(strategy: Strategy, world: World, proof: Proof) -> dict[str, Tensor]:
    """The weights as a checkpoint holds them; every rank takes part, rank 0 gets them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(proof.save_to or temporary)
        strategy.save(StateWriter(folder, rank=world.rank, size=world.size))
        strategy.reduce({"written": torch.ones(())})
        if world.rank != 0:
            return {}
        reader = StateReader(folder)
        return {name: reader.read("model", name).clone() for name in sorted(reader.names("model"))}


def initial_weights(proof: Proof) -> dict[str, Tensor]:
    """The weights before the first step."""
    return {
        name: tensor.detach().clone() for name, tensor in named_weights(job_for(proof).build_model()).items()
    }


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest absolute difference of two sets of weights and the parameter it is in."""
    if set(ours) != set(theirs):
        raise ValueError(f"different parameters: {sorted(set(ours) ^ set(theirs))}")
    return max(((ours[name] - theirs[name]).abs().max().item(), name) for name in ours)
