"""Data is encoded once, whole, and by content."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from words import Words, WordsModel, colour_records

from distrib.core import IGNORED
from distrib.data import cache
from distrib.data.cache import ensure, is_whole
from distrib.data.encoded import EncodedSet, write
from distrib.data.prepare import Prepared, cache_key, prepare
from distrib.errors import DataError
from distrib.tasks.causal_lm import CausalLM
from distrib.tasks.sequence_classification import SequenceClassification


def classify(source: Words, model: WordsModel, folder: Path) -> Prepared:
    return prepare(source, SequenceClassification(max_length=8), model, cache_dir=folder)


def test_examples_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Columns of any length are read back exactly, with lengths and targets counted."""
    examples = [
        {"input_ids": np.arange(n, dtype=np.int32), "labels": np.full(n, IGNORED if n % 2 else 1, np.int32)}
        for n in (3, 1, 4, 1, 5)
    ]
    assert write(tmp_path / "set", iter(examples)) == 5
    encoded = EncodedSet.open(tmp_path / "set")
    assert (len(encoded), encoded.lengths.tolist(), encoded.targets.tolist()) == (
        5,
        [3, 1, 4, 1, 5],
        [0, 0, 4, 0, 0],
    )
    for number, example in enumerate(examples):
        for name, values in encoded.example(number).items():
            np.testing.assert_array_equal(values, example[name])
            assert values.dtype == np.int32


def test_columns_are_mapped_and_not_read(tmp_path: Path) -> None:
    """An example is a view of the mapped file, so ranks of a machine share its pages."""
    write(tmp_path / "set", [{"input_ids": np.arange(9, dtype=np.int32), "labels": np.array([1])}])
    values = EncodedSet.open(tmp_path / "set").example(0)["input_ids"]
    assert not values.flags.owndata
    assert not values.flags.writeable


def test_a_set_of_no_examples_opens(tmp_path: Path) -> None:
    """Nothing written is an empty set, not an error."""
    assert write(tmp_path / "set", []) == 0
    assert len(EncodedSet.open(tmp_path / "set")) == 0


@pytest.mark.slow
def test_a_warm_start_reads_neither_records_nor_tokenizer(tmp_path: Path) -> None:
    """The second call gives the same data from disk alone."""
    source, model = Words(colour_records(), colour_records()[:2]), WordsModel()
    cold = classify(source, model, tmp_path)
    warm = classify(source, model, tmp_path)
    assert (source.times_loaded, model.times_tokenizer) == (1, 1)
    assert warm.vocabulary == cold.vocabulary
    assert warm.notes == cold.notes == {"train_examples": 5, "heldout_examples": 2, "split": "given"}
    assert warm.train.lengths.tolist() == cold.train.lengths.tolist()


@pytest.mark.slow
def test_prepared_data_carries_labels_and_a_loadable_tokenizer(tmp_path: Path) -> None:
    """The vocabulary names the classes, and the stored tokenizer reads back what was encoded."""
    from transformers import AutoTokenizer

    prepared = classify(Words(colour_records(), colour_records()[:2]), WordsModel(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_dir)
    assert prepared.vocabulary.labels == ["blue", "green", "red"]
    assert prepared.vocabulary.vocab_size == len(tokenizer)
    example = prepared.train.example(0)
    assert tokenizer.decode(example["input_ids"]) == "red apple"
    assert example["labels"].tolist() == [2]


def test_the_key_follows_source_tokenizer_and_task() -> None:
    """Anything that changes the encoded data changes its place; the same again does not."""
    source, model, task = Words(colour_records(), []), WordsModel(), CausalLM(max_length=8)
    other_model = WordsModel()
    other_model.vocab_size = 301
    keys = [
        cache_key(source, task, model),
        cache_key(Words(colour_records()[1:], []), task, model),
        cache_key(source, CausalLM(max_length=9), model),
        cache_key(source, SequenceClassification(max_length=8), model),
        cache_key(source, task, other_model),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(Words(colour_records(), []), CausalLM(max_length=8), WordsModel()) == keys[0]


@pytest.mark.parametrize("damage", ["missing", "short", "unlisted"])
def test_a_damaged_copy_is_built_again(tmp_path: Path, damage: str) -> None:
    """A cached folder that lost a file, part of a file or its listing is rebuilt and then whole."""
    source, model = Words(colour_records(), colour_records()[:2]), WordsModel()
    first = classify(source, model, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    victim = folder / ("files.json" if damage == "unlisted" else "train/input_ids.npy")
    victim.write_bytes(victim.read_bytes()[:-3]) if damage == "short" else victim.unlink()
    again = classify(source, model, tmp_path)
    assert source.times_loaded == 2
    assert again.train.example(0)["input_ids"].tolist() == first.train.example(0)["input_ids"].tolist()
    assert is_whole(folder)


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    """After an error in the data there is no folder that looks finished, and mending the data is enough."""
    stranger = {"text": "old rose", "label": "rose", "where": "colours:9"}
    with pytest.raises(DataError, match="colours:9: label 'rose' never occurs in the training data"):
        classify(Words(colour_records(), [stranger]), WordsModel(), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(classify(Words(colour_records(), colour_records()[:1]), WordsModel(), tmp_path).heldout) == 1


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    """An empty side of the split is an error before training starts."""
    with pytest.raises(DataError, match="no heldout examples"):
        classify(Words(colour_records(), []), WordsModel(), tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A cache directory below a file says what stands in the way and which key to set."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cache_dir"):
        ensure(tmp_path / "file" / "key", lambda folder: None, is_builder=True)


def _build_slowly(folder: Path) -> None:
    with (folder.parent / "builds.txt").open("a") as log:
        log.write("one\n")
    time.sleep(0.3)
    (folder / "data.json").write_text(json.dumps(list(range(100))))


def _ensure_in_a_process(folder: Path, is_builder: bool, results: Any) -> None:
    ensure(folder, _build_slowly, is_builder=is_builder)
    results.put(json.loads((folder / "data.json").read_text())[-1])


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("builders", [[True, False, False], [False, False], [True, True, True]])
def test_one_process_builds_and_the_others_wait(
    tmp_path: Path, builders: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many start at once, builder or not, the folder is built once and all see it whole."""
    monkeypatch.setattr(cache, "HEAD_START", 0.5)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_ensure_in_a_process, args=(tmp_path / "key", is_builder, results))
        for is_builder in builders
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [99] * len(processes)
    for process in processes:
        process.join(timeout=10)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert (tmp_path / "builds.txt").read_text() == "one\n"
