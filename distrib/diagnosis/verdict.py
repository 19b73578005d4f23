"""What the user is told: which ranks are missing or differ, where everyone stands, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.diagnosis.cards import Card
from distrib.diagnosis.collectives import Collective

if TYPE_CHECKING:
    from distrib.world import World

MOST_ROWS = 64
"""Ranks in the table of who stands where."""

ORDER = """\
Every rank has to call the same operations in the same order, with the same shapes and dtypes: look for
one behind `if rank == ...`, in a loop of different length, or on data whose shape differs."""


def mismatch(
    calls: Mapping[int, Collective], cards: Mapping[int, Card], *, logs: Path, steps: int | None = None
) -> str:
    """Ranks that called different operations at the same place.

    Args:
        steps: that were done when it was found out, where the ranks have gone on meanwhile.
    """
    lines = ["the ranks do not call the same collective operation:"]
    groups = _by_call(calls)
    lines += [
        f"  rank {ranks[0]} calls {text}" if len(ranks) == 1 else f"  ranks {several(ranks)} call {text}"
        for text, ranks in groups.items()
    ]
    if steps is not None:
        lines.append(f"Found after step {steps}; what they made of each other's numbers is garbage.")
        return "\n".join([*lines, "", ORDER])
    stacks = [cards[ranks[0]] for ranks in groups.values() if ranks[0] in cards]
    return "\n".join([*lines, "", *_stacks(stacks), ORDER, _logs(logs)])


def hang(why: str, cards: Mapping[int, Card], *, size: int, logs: Path) -> str:
    """Ranks that waited in vain, and those that did not come."""
    silent = [rank for rank in range(size) if rank not in cards]
    late = elsewhere(cards)
    lines = [why, *_blame(silent, late, cards), "", *_table(cards, ranks=range(size)), ""]
    stacks = _stacks([cards[rank] for rank in (late or list(cards)[:1])])
    return "\n".join([*lines, *stacks, f"{_logs(logs)} Raise timeouts.collective where ranks are only slow."])


def no_store(card: Card, *, world: World, logs: Path) -> str:
    """What one rank can say where the store does not answer."""
    served_by = "torchrun's agent" if world.store_is_served else "rank 0"
    return "\n".join(
        [
            f"a collective operation took longer than {world.collective_timeout:g} s (timeouts.collective) "
            f"on rank {world.rank}",
            f"{served_by} does not answer at {world.master_address}:{world.master_port}, where ranks met:",
            "its process is stopped, or its host cut off from the network",
            "",
            *_table({card.rank: card}, ranks=[card.rank]),
            "",
            *_stacks([card]),
            f"Look at that process and its host first, then at the other ranks' logs in {logs}.",
        ]
    )


def elsewhere(cards: Mapping[int, Card]) -> list[int]:
    """The ranks that are in no collective operation, or not in the one where most others are further."""
    waiting = {rank: card.collective for rank, card in cards.items() if card.collective is not None}
    outside = [rank for rank in cards if rank not in waiting]
    if outside or not waiting:
        return outside if waiting else []
    furthest = max(collective.number for collective in waiting.values())
    return [rank for rank, collective in waiting.items() if collective.number < furthest]


def several(ranks: Sequence[int]) -> str:
    """As ``0, 2-5``; the first few of many."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(texts[:8]) + (f" and {len(runs) - 8} more ranges" if len(runs) > 8 else "")


def _by_call(calls: Mapping[int, Collective]) -> dict[str, list[int]]:
    """Ranks by what they call, the smallest group first: it is the likelier culprit."""
    groups: dict[str, list[int]] = {}
    for rank, collective in sorted(calls.items()):
        groups.setdefault(collective.text, []).append(rank)
    return dict(sorted(groups.items(), key=lambda group: len(group[1])))


def _blame(silent: Sequence[int], late: Sequence[int], cards: Mapping[int, Card]) -> Iterator[str]:
    if silent:
        yield f"no answer from rank {several(silent)}: stopped, cut off from the network, or in native code"
    for rank in late:
        yield f"rank {rank} did not come: it is at {_where(cards[rank])}"


def _table(cards: Mapping[int, Card], *, ranks: Sequence[int]) -> Iterator[str]:
    width = max([len(card.host) for card in cards.values()] + [4])
    yield f"  {'rank':>4}  {'host':<{width}}  {'pid':>7}  {'steps':>6}  {'idle':>7}  is in"
    for rank in ranks[:MOST_ROWS]:
        if rank not in cards:
            yield f"  {rank:>4}  {'?':<{width}}  {'?':>7}  {'?':>6}  {'?':>7}  (no answer)"
            continue
        card = cards[rank]
        steps = "-" if card.steps is None else str(card.steps)
        what = card.collective.text if card.collective else _where(card)
        yield f"  {rank:>4}  {card.host:<{width}}  {card.pid:>7}  {steps:>6}  {card.idle:>5.1f} s  {what}"
    if len(ranks) > MOST_ROWS:
        yield f"  and {len(ranks) - MOST_ROWS} more"


def _stacks(cards: Sequence[Card]) -> Iterator[str]:
    for card in cards[:4]:
        yield f"rank {card.rank} stands at (innermost last):"
        yield from (f"  {line}" for line in card.stack)
        yield ""


def _where(card: Card) -> str:
    return card.stack[-1] if card.stack else "(no Python code)"


def _logs(folder: Path) -> str:
    return f"The stacks of all threads of every rank that answered are in {folder}/rank-*.log."
