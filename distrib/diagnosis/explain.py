"""From the transport's complaint to what the user is told: asks the ranks where they stand."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.diagnosis import collectives, verdict
from distrib.diagnosis.cards import POLL_SECONDS, Board, Card, Met
from distrib.diagnosis.checked import MISMATCH
from distrib.diagnosis.collectives import Collective
from distrib.diagnosis.state import RankState
from distrib.rendezvous import lost_peer

if TYPE_CHECKING:
    from distrib.world import World

ANSWER_SECONDS = 3.0
"""How long a rank has to answer where the others say it is."""
CALLS_SECONDS = 0.5
"""How long to wait, when ranks differ, until each has said what it called."""
NEARLY = 0.9
"""Of the time limit: from then on an error of the transport means a time-out, before that a death."""


def explain(error: RuntimeError, state: RankState, *, world: World, logs: Path) -> str | None:
    """What is behind the transport's ``error``; None where it is of another kind, or a peer died."""
    text = str(error)
    if MISMATCH in text:
        calls = collectives.fingerprints(text)
        state.raised(error, calls.get(world.rank))
        return asked(lambda board: mismatch(board, state, calls, logs=logs), state, world=world, logs=logs)
    limit = world.collective_timeout
    timed_out = "Timed out waiting" in text or state.idle >= NEARLY * limit
    if not (timed_out and lost_peer(error)):
        return None
    state.raised(error, None)
    why = f"a collective operation took longer than {limit:g} s (timeouts.collective) on rank {world.rank}"
    return asked(lambda board: hang(board, state, why, logs=logs), state, world=world, logs=logs)


def explain_end(state: RankState, *, world: World, logs: Path) -> str | None:
    """Why C++ ends this process, if it is that the ranks' calls differ: the others still wait in theirs."""

    def differing(board: Board) -> str | None:
        cards = _cards(board, state, seconds=CALLS_SECONDS, enough=bool)
        calls = collectives.first_difference({rank: card.calls for rank, card in cards.items()})
        return verdict.mismatch(calls, cards, logs=logs) if calls else None

    return _within_limit(differing, world)


def asked(find: Callable[[Board], str], state: RankState, *, world: World, logs: Path) -> str:
    """``find``'s words, or what can be said where the store does not answer."""
    return _within_limit(find, world) or verdict.no_store(state.card(), world=world, logs=logs)


def _within_limit(find: Callable[[Board], str | None], world: World) -> str | None:
    """What ``find`` returns; None where that takes too long: the store's requests have no limit."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(find(Board.of(world))), name="verdict", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS + 2)
    return found[0] if found else None


def mismatch(board: Board, state: RankState, calls: Mapping[int, Collective], *, logs: Path) -> str:
    """Ranks whose calls differ: ``calls`` has those of the two that were found out."""

    def all_called(cards: Mapping[int, Card]) -> bool:
        return all(card.collective is not None for card in cards.values())

    cards = _cards(board, state, seconds=CALLS_SECONDS, enough=all_called)
    found = collectives.first_difference({rank: card.calls for rank, card in cards.items()})
    return verdict.mismatch({**(found or _known(cards)), **calls}, cards, logs=logs)


def went_on(board: Board, steps: int, calls: Mapping[int, Collective], *, logs: Path) -> str:
    """Ranks whose calls differed and that went on all the same; ``calls`` has those of two of them."""
    deadline = time.monotonic() + CALLS_SECONDS
    said: dict[int, Met] = {}
    while len(said) < board.size and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        cards = {rank: board.met(rank) for rank in range(board.size)}
        said = {rank: met for rank, met in cards.items() if met is not None and met.steps == steps}
    differing = collectives.first_difference({rank: met.calls for rank, met in said.items()})
    return verdict.mismatch({**differing, **calls}, {}, logs=logs, steps=steps)


def hang(board: Board, state: RankState, why: str, *, logs: Path) -> str:
    """Ranks that waited for others that did not come."""
    cards = _cards(board, state, seconds=ANSWER_SECONDS, enough=bool)
    return verdict.hang(why, cards, size=board.size, logs=logs)


def answer(board: Board, state: RankState, *, question: int) -> None:
    """Hangs up where this rank stands.

    One that stays there has answered all later questions too, which it may not live to hear.
    """
    with state.answering:
        is_last = state.stays  # before the card: what is said last must be where it stays
        board.answer(state.card(), question=sys.maxsize if is_last else question)


def _known(cards: Mapping[int, Card]) -> dict[int, Collective]:
    """The operations that ranks have said they are in, where more than a name is known."""
    said = {rank: card.collective for rank, card in cards.items() if card.collective is not None}
    return {rank: call for rank, call in said.items() if call.tensors or call.name in collectives.NO_TENSORS}


def _cards(
    board: Board, state: RankState, *, seconds: float, enough: Callable[[Mapping[int, Card]], bool]
) -> dict[int, Card]:
    question = board.ask()
    answer(board, state, question=question)
    return board.answers(question, seconds=seconds, enough=enough)
