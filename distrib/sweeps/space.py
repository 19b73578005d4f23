"""What a sweep varies: each setting and the values it may take. Knows neither Hydra nor Optuna."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distrib.errors import ConfigError

Value = str | int | float
"""A word as Hydra reads it, or a number between two others."""


MARKS = 5
"""On an axis of numbers."""


class Suggests(Protocol):
    """Draws one value for a setting, in the words of Optuna's ``Trial``."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...


class Dimension(ABC):
    """The values of one setting."""

    @abstractmethod
    def texts(self, key: str) -> Sequence[str]:
        """All of them, as typed on a command line. Raises `ConfigError` where there is no end of them."""

    @abstractmethod
    def draw(self, key: str, by: Suggests) -> Value:
        """One of them, as ``by`` chooses."""

    @abstractmethod
    def text(self, value: Value) -> str:
        """A value as typed on a command line."""

    @abstractmethod
    def read(self, text: str) -> Value:
        """The opposite of `text`."""

    @abstractmethod
    def share(self, value: Value) -> float:
        """Where on an axis a value stands, from 0 to 1."""

    @abstractmethod
    def marks(self) -> Sequence[Value]:
        """A few values to mark on that axis."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers on an axis."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """From 0 at ``low`` to 1 at ``high``."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[float]:
        """The two ends, and even parts between them."""
        parts = [part / (MARKS - 1) for part in range(MARKS)]
        if self.log:
            return [self.low * (self.high / self.low) ** part for part in parts]
        return [self.low + (self.high - self.low) * part for part in parts]


@dataclass(frozen=True, kw_only=True)
class Choice(Dimension):
    """One of several words, in no order."""

    words: tuple[str, ...]

    def texts(self, key: str) -> Sequence[str]:
        return self.words

    def draw(self, key: str, by: Suggests) -> Value:
        return by.suggest_categorical(key, self.words)

    def text(self, value: Value) -> str:
        return str(value)

    def read(self, text: str) -> Value:
        return text

    def share(self, value: Value) -> float:
        return (self.words.index(str(value)) + 0.5) / len(self.words)

    def marks(self) -> Sequence[Value]:
        return self.words


@dataclass(frozen=True, kw_only=True)
class Interval(Dimension):
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    """Whether orders of magnitude are equally likely, rather than numbers."""

    def texts(self, key: str) -> Sequence[str]:
        raise ConfigError(
            key,
            f"interval({self.low}, {self.high})",
            "a grid needs single values: write a,b,c or range(...), or search by sweep=random or optuna",
        )

    def draw(self, key: str, by: Suggests) -> Value:
        return by.suggest_float(key, self.low, self.high, log=self.log)

    def text(self, value: Value) -> str:
        """Six digits: what people can read, copy and compare is what runs."""
        short = float(f"{value:.6g}")
        return repr(min(max(short, self.low), self.high))

    def read(self, text: str) -> Value:
        return float(text)

    def share(self, value: Value) -> float:
        return self._scale.share(float(value))

    def marks(self) -> Sequence[Value]:
        return self._scale.marks()

    @property
    def _scale(self) -> Scale:
        return Scale(low=self.low, high=self.high, log=self.log)


@dataclass(frozen=True, kw_only=True)
class Steps(Dimension):
    """A whole number from ``low`` to ``high``, both included, in steps."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    """As in `Interval`; with a step of 1 only."""

    def texts(self, key: str) -> Sequence[str]:
        return [str(value) for value in range(self.low, self.high + 1, self.step)]

    def draw(self, key: str, by: Suggests) -> Value:
        return by.suggest_int(key, self.low, self.high, step=self.step, log=self.log)

    def text(self, value: Value) -> str:
        return str(value)

    def read(self, text: str) -> Value:
        return int(text)

    def share(self, value: Value) -> float:
        return Scale(low=self.low, high=self.high, log=self.log).share(float(value))

    def marks(self) -> Sequence[Value]:
        every = max(1, math.ceil((self.high - self.low) / self.step / (MARKS - 1)))
        return range(self.low, self.high + 1, self.step * every)


Space = Mapping[str, Dimension]
"""The settings that vary, by dotted key or group."""


def draw(space: Space, by: Suggests) -> tuple[str, ...]:
    """One point of the space, as overrides."""
    return tuple(f"{key}={dimension.text(dimension.draw(key, by))}" for key, dimension in space.items())


def read(space: Space, overrides: Sequence[str]) -> dict[str, Value]:
    """The opposite of `draw`."""
    texts = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    return {key: dimension.read(texts[key]) for key, dimension in space.items() if key in texts}
