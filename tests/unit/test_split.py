"""Held-out data is drawn by content and seed, and never overlaps the training data."""

from __future__ import annotations

import pytest

from distrib.data.base import Record
from distrib.data.split import draw, separate
from distrib.errors import ConfigError, DataError


def records(*texts: str) -> list[Record]:
    return [{"text": text, "label": "x", "where": f"f:{line}"} for line, text in enumerate(texts, start=1)]


def texts(part: object) -> list[str]:
    return [record["text"] for record in part]  # type: ignore[attr-defined]


MANY = [f"text {number}" for number in range(100)]


def test_draw_ignores_the_order_of_rows() -> None:
    """The same content gives the same held-out set, whatever order the rows come in."""
    one = draw(records(*MANY), fraction=0.2, seed=3, notes={})
    other = draw(records(*reversed(MANY)), fraction=0.2, seed=3, notes={})
    assert sorted(texts(one.heldout)) == sorted(texts(other.heldout))
    assert len(one.heldout) == 20
    assert sorted(texts(one.train) + texts(one.heldout)) == sorted(MANY)


def test_draw_depends_on_the_seed() -> None:
    """Another seed holds out other texts."""
    one, other = (draw(records(*MANY), fraction=0.2, seed=seed, notes={}) for seed in (0, 1))
    assert set(texts(one.heldout)) != set(texts(other.heldout))


def test_draw_leaves_no_copy_of_a_heldout_text_in_training() -> None:
    """Copies of a held-out text are removed from training and counted; copies within training stay."""
    corpus = draw(records(*MANY, *MANY, *MANY), fraction=0.1, seed=0, notes={})
    assert set(texts(corpus.train)).isdisjoint(texts(corpus.heldout))
    assert len(corpus.heldout) == len(set(texts(corpus.heldout))) == 10
    assert corpus.notes["duplicates_across_split_removed"] == 20
    assert corpus.notes["duplicates_within_train"] == 180
    assert corpus.notes["duplicates_within_heldout"] == 0


def test_a_given_heldout_set_stays_whole_and_cleans_the_training_set() -> None:
    """With its own file, the held-out set is kept as it is and training loses what it shares."""
    heldout = records("b", "b", "c")
    corpus = separate(records("a", "b", "a"), heldout, notes={"split": "given"})
    assert texts(corpus.train) == ["a", "a"]
    assert corpus.heldout == heldout
    assert corpus.notes == {
        "split": "given",
        "duplicates_across_split_removed": 1,
        "duplicates_within_train": 1,
        "duplicates_within_heldout": 1,
    }


def test_words_are_compared_like_texts() -> None:
    """Sentences given as words are duplicates when their words agree, whatever their tags."""
    one = {"words": ["a", "b"], "tags": ["O", "O"], "where": "f:1"}
    other = {"words": ["a", "b"], "tags": ["O", "B-x"], "where": "f:2"}
    assert separate([one], [other], notes={}).train == []


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_share_outside_zero_and_one_is_refused(fraction: float) -> None:
    """A fraction that leaves one side empty names the key to change."""
    with pytest.raises(ConfigError, match=r"data\.heldout_fraction"):
        draw(records(*MANY), fraction=fraction, seed=0, notes={})


def test_too_few_texts_are_refused() -> None:
    """One distinct text cannot be split, however often it occurs."""
    with pytest.raises(DataError, match="1 distinct texts"):
        draw(records("a", "a", "a"), fraction=0.5, seed=0, notes={})
