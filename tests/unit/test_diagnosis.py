"""What ranks say of themselves is compared rightly and told in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.diagnosis import verdict
from distrib.diagnosis.cards import Board, Card
from distrib.diagnosis.collectives import Collective, fingerprints, first_difference
from distrib.diagnosis.explain import answer
from distrib.diagnosis.state import RankState

TORCHS_WORDS = (
    "Detected mismatch between collectives on ranks. Rank 1 is running collective: CollectiveFingerPrint("
    "SequenceNumber=4, OpType=ALLREDUCE, TensorShape=[12, 3], TensorDtypes=Int, "
    "TensorDeviceTypes=TensorOptions(dtype=float (default), device=cpu)), but "
    "Rank 0 is running collective: CollectiveFingerPrint("
    "SequenceNumber=4, OpType=BARRIER).Collectives differ in the following aspects: "
    "Op type: ALLREDUCEvs BARRIER"
)


def call(name: str = "all_reduce", *tensors: str, number: int = 1, group: str = "0/") -> Collective:
    return Collective(name=name, tensors=tensors, number=number, group=group)


def card(rank: int, collective: Collective | None = None, *, line: str = "a.py:1 in f: g()") -> Card:
    return Card(
        rank=rank, host=f"h{rank}", pid=100 + rank, steps=7, idle=1.5, stack=(line,), collective=collective
    )


def test_torchs_complaint_is_read() -> None:
    """Both ranks' operations, in the names that Python has for them."""
    found = fingerprints(TORCHS_WORDS)
    assert found[1] == Collective(name="all_reduce", tensors=("int32[12, 3]",), number=4)
    assert found[0] == Collective(name="barrier", number=4)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (call("all_reduce", "float32[3]"), call("all_reduce", "float32[3]"), False),
        (call("all_reduce", "float32[3]"), call("all_reduce", "float32[4]"), True),
        (call("all_reduce", "float32[3]"), call("broadcast", "float32[3]"), True),
        (call("scatter", "float32[3]"), call("scatter"), False),
        (call("all_reduce", number=1), call("broadcast", number=2), False),
        (call("all_reduce", group="1/a"), call("broadcast", group="1/b"), False),
        (call("all_reduce"), Collective(name="send", number=1, group="0/", is_pairwise=True), False),
    ],
)
def test_only_calls_at_the_same_place_of_a_group_contradict_each_other(
    one: Collective, other: Collective, differ: bool
) -> None:
    """Another place, another group, a send, or a root's own tensors are no mismatch."""
    assert one.contradicts(other) is differ
    assert bool(first_difference({0: [one], 1: [other]})) is differ


def test_the_earliest_difference_is_the_one_that_is_told() -> None:
    """Later ones follow from it."""
    ours = [call("all_reduce", "float32[3]", number=n) for n in (4, 5, 6)]
    theirs = [ours[0], call("all_reduce", "float32[9]", number=5), call("barrier", number=6)]
    assert first_difference({0: ours, 1: theirs}) == {0: ours[1], 1: theirs[1]}


def test_a_mismatch_puts_the_rank_that_differs_first() -> None:
    """The smallest group is the likelier culprit; where it stands is shown."""
    calls = {rank: call("all_reduce", "float32[3]") for rank in (0, 2, 3)} | {1: call("barrier")}
    words = verdict.mismatch(calls, {1: card(1, line="mine.py:7 in odd: x()")}, logs=Path("logs"))
    assert words.splitlines()[1:3] == [
        "  rank 1 calls barrier",
        "  ranks 0, 2, 3 call all_reduce of float32[3]",
    ]
    assert "mine.py:7 in odd: x()" in words


def test_a_hang_names_who_is_silent_and_who_is_elsewhere() -> None:
    """One row a rank: host, process, steps, and where it is."""
    cards = {0: card(0, call("all_reduce", "float32[3]")), 1: card(1, line="slow.py:3 in load: read()")}
    words = verdict.hang("it took long", cards, size=3, logs=Path("logs"))
    assert "no answer from rank 2" in words
    assert "rank 1 did not come: it is at slow.py:3 in load: read()" in words
    assert "rank 0 did not come" not in words
    assert "(no answer)" in words


def test_a_rank_in_an_earlier_operation_is_the_late_one() -> None:
    """All wait, one of them for something the others have left behind."""
    cards = {rank: card(rank, call(number=9)) for rank in (0, 2)} | {1: card(1, call(number=8))}
    assert verdict.elsewhere(cards) == [1]


def test_ranks_are_named_in_ranges() -> None:
    """A thousand ranks do not fill the screen."""
    assert verdict.several([4, 0, 2, 3, 9]) == "0, 2-4, 9"
    assert verdict.several(range(0, 100, 2)).endswith(" and 42 more ranges")


def test_cards_are_asked_for_and_read_back() -> None:
    """A question is heard by every board of the store; an older answer is not taken for a new one."""
    from torch.distributed import HashStore

    store = HashStore()
    boards = [Board(store, rank=rank, size=2) for rank in (0, 1)]
    assert boards[1].asked() == 0
    question = boards[0].ask()
    assert boards[1].asked() == question
    sent = card(1, call("all_reduce", "float32[3]"))
    boards[1].answer(sent, question=question)
    assert boards[0].answers(question, seconds=0.1, enough=bool) == {1: sent}
    assert boards[0].answers(boards[0].ask(), seconds=0.1, enough=bool) == {}


def test_a_rank_that_has_raised_answers_what_is_asked_after_its_end() -> None:
    """It stands where it raised: the others need not wait for a process that has gone."""
    from torch.distributed import HashStore

    store = HashStore()
    boards = [Board(store, rank=rank, size=2) for rank in (0, 1)]
    state = RankState(1, device="cpu")
    answer(boards[1], state, question=boards[0].ask())
    assert boards[0].answers(boards[0].ask(), seconds=0.1, enough=bool) == {}
    state.raised(RuntimeError("differs"), call("barrier"))
    answer(boards[1], state, question=boards[0].ask())
    assert boards[0].answers(boards[0].ask(), seconds=0.1, enough=bool)[1].collective == call("barrier")


def test_ranks_that_wait_compare_with_the_next() -> None:
    """Each says what it called; the last compares with the first."""
    from torch.distributed import HashStore

    store = HashStore()
    boards = [Board(store, rank=rank, size=2) for rank in (0, 1)]
    assert boards[0].compare([call()]) == {0: [call()]}
    assert boards[1].compare([call("barrier")]) == {1: [call("barrier")], 0: [call()]}
