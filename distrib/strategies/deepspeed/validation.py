"""DeepSpeed's judgement of its configuration, in our words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distrib.errors import ConfigError


class Watched(dict[str, Any]):
    """A configuration that notes which keys are asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[object] = set()

    def __contains__(self, key: object) -> bool:
        self.seen.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, noting the key."""
        self.seen.add(key)
        return super().get(key, default)


def validate(config: Mapping[str, Any], *, own: Mapping[str, Any]) -> None:
    """Raises `ConfigError` naming the key of the user's ``own`` that DeepSpeed refuses or lacks.

    DeepSpeed passes over an unknown key at the top in silence; one that it never asks for is unknown.
    """
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    watched = Watched(config)
    try:
        DeepSpeedConfig(watched)
    except ValidationError as error:
        first = error.errors()[0]
        raise refusal(own, [str(part) for part in first["loc"]], str(first["msg"])) from error
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, AssertionError) as error:
        named = [key for key in own if key in str(error)]
        raise refusal(own, named[:1], str(error)) from error
    if unknown := [key for key in own if key not in watched.seen]:
        raise refusal(own, unknown[:1], "DeepSpeed has no such key")


def refusal(own: Mapping[str, Any], path: list[str], message: str) -> ConfigError:
    """The error for the key at the end of ``path``, which begins at some section of ``own``."""
    for keys, value in sections(own):
        if path and path[0] in value:
            found = value[path[0]]
            return ConfigError(".".join(["strategy.config", *keys, *path]), found, message)
    return ConfigError("strategy.config", dict(own), message)


def sections(own: Mapping[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every mapping in ``own`` and the keys that lead to it."""
    yield keys, own
    for key, value in own.items():
        if isinstance(value, Mapping):
            yield from sections(value, (*keys, key))
