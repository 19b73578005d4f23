"""Every shard gets its share of each global batch, ahead of time, and nothing can hang."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from words import encoded_of_lengths, random_lengths

from distrib.config import TrainConfig
from distrib.core import IGNORED, Batch, DataShard
from distrib.data.encoded import EncodedSet
from distrib.data.loader import Loader, StepBatches, evaluation
from distrib.tasks.base import Vocabulary
from distrib.tasks.sequence_classification import SequenceClassification

SIZE = 45
VOCABULARY = Vocabulary(labels=[str(number) for number in range(SIZE)], pad_token_id=0)
ALONE = DataShard(index=0, count=1)


@pytest.fixture
def encoded(tmp_path: Path) -> EncodedSet:
    return encoded_of_lengths(tmp_path / "set", random_lengths(SIZE))


def loader(encoded: EncodedSet, *, shard: DataShard = ALONE, **train: Any) -> Loader:
    settings = {"global_batch_size": 10, "microbatch_size": 3, **train}
    return Loader(
        encoded,
        task=SequenceClassification(),
        vocabulary=VOCABULARY,
        train=TrainConfig(**settings),
        seed=7,
        shard=shard,
        device="cpu",
    )


def numbers(batch: Batch) -> list[int]:
    """The examples in a batch: each one's label is its own number."""
    return [int(label) for label in batch.tensors["labels"] if label != IGNORED]


def content(steps: Sequence[StepBatches]) -> list[list[tuple[int, list[int]]]]:
    return [[(batch.index, numbers(batch)) for batch in step.microbatches] for step in steps]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_the_shards_of_a_step_are_the_microbatches_of_the_whole(encoded: EncodedSet, count: int) -> None:
    """For any number of shards, together they run the same microbatches, each exactly once."""
    whole = list(loader(encoded).steps(0, 7))
    parts = [list(loader(encoded, shard=DataShard(index=i, count=count)).steps(0, 7)) for i in range(count)]
    for step, expected in enumerate(whole):
        together = [batch for part in parts for batch in part[step].microbatches if numbers(batch)]
        together.sort(key=lambda batch: batch.index)
        assert content([expected]) == [[(batch.index, numbers(batch)) for batch in together]]
        for part in parts:
            assert (part[step].examples, part[step].tokens) == (expected.examples, expected.tokens)
            assert {batch.step_targets for batch in part[step].microbatches} == {expected.targets}


def test_a_shard_without_a_microbatch_gets_a_ghost(encoded: EncodedSet) -> None:
    """The last batch has 5 examples, two microbatches: the third shard runs one without targets."""
    (step,) = loader(encoded, shard=DataShard(index=2, count=3)).steps(4, 5)
    (ghost,) = step.microbatches
    assert step.examples == ghost.step_targets == 5
    assert numbers(ghost) == []
    assert ghost.tensors["labels"].shape == (3,)
    assert ghost.tensors["input_ids"].shape[0] == 3


def test_starting_in_the_middle_goes_on_where_the_whole_run_would(encoded: EncodedSet) -> None:
    """Steps 7 to 11 are the same whether the steps before them were run or not."""
    assert content(list(loader(encoded).steps(7, 12))) == content(list(loader(encoded).steps(0, 12)))[7:]


def test_a_step_comes_again_with_the_shares_of_then(encoded: EncodedSet) -> None:
    """Where it is asked for; those after it are collated anew too."""
    owner = 1
    shard = DataShard(index=0, count=2, owners=lambda step, count: [owner] * count)
    made, came = loader(encoded, shard=shard), list[StepBatches]()
    for batches in made.steps(2, 5):
        came.append(batches)
        if len(came) == 2:
            owner = 0
            made.redo()
    assert [batches.step for batches in came] == [2, 3, 3, 4]
    assert [bool(numbers(batches.microbatches[0])) for batches in came] == [False, False, True, True]


def test_no_steps_are_no_batches(encoded: EncodedSet) -> None:
    """A run that is already finished asks for no step and gets none."""
    assert list(loader(encoded).steps(5, 5)) == []


def test_microbatches_are_counted_for_a_full_batch(encoded: EncodedSet) -> None:
    """Ten examples in threes make four microbatches; 45 examples in tens make five steps."""
    made = loader(encoded)
    assert (made.num_microbatches, made.steps_per_epoch) == (4, 5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 45, 100])
def test_evaluation_covers_every_example_once(encoded: EncodedSet, count: int, batch_size: int) -> None:
    """Over all shards each example counts exactly once, and all shards run equally many batches."""
    shards = [
        list(
            evaluation(
                encoded,
                task=SequenceClassification(),
                vocabulary=VOCABULARY,
                batch_size=batch_size,
                shard=DataShard(index=index, count=count),
                device="cpu",
            )
        )
        for index in range(count)
    ]
    seen = Counter(number for shard in shards for batch in shard for number in numbers(batch))
    assert seen == Counter(range(SIZE))
    assert len({len(shard) for shard in shards}) == 1
    assert len({batch.index for shard in shards for batch in shard}) == count * len(shards[0])


def test_evaluation_pads_little(encoded: EncodedSet) -> None:
    """Sorted by length, the batches hold hardly more positions than there are tokens."""
    batches = evaluation(
        encoded, task=SequenceClassification(), vocabulary=VOCABULARY, batch_size=5, shard=ALONE, device="cpu"
    )
    positions = sum(batch.tensors["input_ids"].numel() for batch in batches)
    assert positions < 1.15 * int(encoded.lengths.sum())


def test_collated_rows_are_padded_on_the_right(encoded: EncodedSet) -> None:
    """Tokens stand first, the mask says which positions hold one."""
    (step,) = loader(encoded, microbatch_size=10).steps(0, 1)
    (batch,) = step.microbatches
    for row, mask, label in zip(
        *(batch.tensors[k] for k in ("input_ids", "attention_mask", "labels")), strict=True
    ):
        length = int(encoded.lengths[int(label)])
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert row.tolist() == [int(label)] * length + [0] * (len(row) - length)
    assert {tensor.dtype for tensor in batch.tensors.values()} == {torch.int64}
