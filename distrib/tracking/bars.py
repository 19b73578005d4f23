"""What a strategy measured in parts of a whole, such as how many gradients were how stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distrib.core import OWN
from distrib.tracking.text import number_text

LEVELS = "▁▂▃▄▅▆▇█"
NOTHING = "·"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One part."""

    name: str
    text: str
    """Its amount, and its share of the whole."""
    length: float
    """From 0 to 1, which is the largest part's."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One chart."""

    title: str
    bars: Sequence[Bar]


def part_of(name: str) -> tuple[str, str] | None:
    """Whole and part that a record's ``strategy/<whole>/<part>`` names; None for any other name."""
    whole, slash, part = name.removeprefix(OWN).partition("/")
    return (whole, part) if name.startswith(OWN) and slash else None


def bars(records: Iterable[Mapping[str, float | None]]) -> list[Bars]:
    """A chart for each whole: its parts added up over the run. Left out where there is nothing of it."""
    totals: dict[str, dict[str, float]] = {}
    for record in records:
        for name, value in record.items():
            if (found := part_of(name)) is not None:
                parts = totals.setdefault(found[0], {})
                parts[found[1]] = parts.get(found[1], 0.0) + (value or 0.0)
    return [_drawn(whole, parts) for whole, parts in totals.items() if any(parts.values())]


def _drawn(whole: str, parts: Mapping[str, float]) -> Bars:
    total, largest = sum(parts.values()), max(parts.values())
    drawn = [
        Bar(name=_words(name), text=f"{number_text(value)} · {value / total:.0%}", length=value / largest)
        for name, value in parts.items()
    ]
    return Bars(title=f"{_words(whole)}, whole run", bars=drawn)


def _words(name: str) -> str:
    return name.replace("_", " ")


def spark(values: Sequence[float]) -> str:
    """A character per value, as high as its share of the largest: ``▅█▁··``."""
    largest = max(values, default=0.0)
    return "".join(LEVELS[round(v / largest * (len(LEVELS) - 1))] if v > 0 else NOTHING for v in values)
