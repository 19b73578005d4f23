"""The words a comparison takes for itself; everything else on its command line is the run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from distrib.errors import ConfigError

T = TypeVar("T")

TAKEN = {
    "strategy": "is varied here; name what to run as strategies=ddp,fsdp",
    "resume": "the runs compared start from the first step; leave it out",
}
"""Keys of a run that a comparison cannot leave to the user."""


def split(words: Sequence[str], *, own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """``key=value`` words by key where the key is in ``own``, and the other words as they are.

    Raises `ConfigError` for a setting of the run that the comparison makes itself.
    """
    ours: dict[str, str] = {}
    others = []
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+") in TAKEN:
            raise ConfigError(key, value, TAKEN[key.lstrip("+")])
        if key in own:
            ours[key] = value
        else:
            others.append(word)
    return ours, others


def names(given: Mapping[str, str], key: str) -> tuple[str, ...]:
    """A list of names, as ``ddp,fsdp``; empty where the key was not given."""
    return _distinct(key, given.get(key), str)


def counts(given: Mapping[str, str], key: str, *, default: Sequence[int]) -> tuple[int, ...]:
    """A list of whole numbers from 1, as ``1,2,4``."""
    return _distinct(key, given.get(key), _count) or tuple(default)


def count(given: Mapping[str, str], key: str, *, default: int) -> int:
    """One whole number from 1."""
    found = counts(given, key, default=(default,))
    if len(found) != 1:
        raise ConfigError(key, given[key], "one whole number is expected")
    return found[0]


def bound(given: Mapping[str, str], key: str) -> float | None:
    """A largest difference; None where the key was not given."""
    if key not in given:
        return None
    try:
        value = float(given[key])
    except ValueError as error:
        raise ConfigError(key, given[key], "a number is expected, as 1e-5") from error
    if not value >= 0:  # NaN too
        raise ConfigError(key, given[key], "a number from 0 is expected, as 1e-5")
    return value


def _distinct(key: str, text: str | None, convert: Callable[[str], T]) -> tuple[T, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.strip("[]").split(",")]
    try:
        values = tuple(dict.fromkeys(convert(word) for word in words if word))
    except ValueError as error:
        raise ConfigError(key, text, "whole numbers from 1 are expected, as 1,2,4") from error
    if not values:
        raise ConfigError(key, text, "at least one is expected")
    return values


def _count(word: str) -> int:
    value = int(word)
    if value < 1:
        raise ValueError(word)
    return value
