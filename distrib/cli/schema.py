"""Types for what a config holds: the run's sections by their dataclass, targets by their constructor.

OmegaConf's structured configs do the checking and converting (``1e-3`` is a float although YAML reads
a string); this module turns signatures into such configs and their complaints into `ConfigError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, make_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distrib.errors import ConfigError
from distrib.targets import Target, did_you_mean, locate

MISSING = "???"
"""How Hydra writes a value that has to be given."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The settings that a section may and must hold."""

    hints: Mapping[str, Any]
    required: Sequence[str]
    open: bool
    """Takes any further key (a constructor with ``**kwargs``)."""


def typed_section(cls: type, values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """``values`` with the types that a dataclass declares, sections within sections included."""
    schema = schema_of(cls, key=prefix.rstrip("."))
    nested = {
        name: hint for name, hint in schema.hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    flat = {name: value for name, value in values.items() if name not in nested}
    checked = _typed(schema, flat, prefix=prefix)
    for name, hint in nested.items():
        if name in values:
            section = _mapping(values[name], key=f"{prefix}{name}")
            checked[name] = typed_section(hint, section, prefix=f"{prefix}{name}.")
    return checked


def typed_target(target: Any, *, key: str, plugins: Sequence[str]) -> Target:
    """``target`` with the types that its constructor declares, targets within targets included."""
    target = _mapping(target, key=key)
    cls = locate(target, key=key, plugins=plugins)
    arguments = {name: value for name, value in target.items() if name != "_target_"}
    checked = _typed(schema_of(cls, key=key), arguments, prefix=f"{key}.")
    for name, value in checked.items():
        if isinstance(value, dict) and "_target_" in value:
            checked[name] = typed_target(value, key=f"{key}.{name}", plugins=plugins)
    return {"_target_": target["_target_"], **checked}


def schema_of(cls: type, *, key: str) -> Schema:
    """What the constructor of ``cls`` takes. Raises `ConfigError` where its annotations mean nothing here."""
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    try:
        hints = get_type_hints(cls if is_dataclass(cls) else cls.__init__)  # type: ignore[misc]
    except NameError as error:
        raise ConfigError(
            f"{key}._target_",
            f"{cls.__module__}.{cls.__qualname__}",
            f"its constructor's annotations cannot be read ({error}); use int, float, str, bool, list, dict",
        ) from error
    return Schema(
        hints={p.name: hints.get(p.name, Any) for p in named},
        required=[p.name for p in named if p.default is p.empty],
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _typed(schema: Schema, values: Mapping[str, Any], *, prefix: str) -> dict[str, Any]:
    for name, value in values.items():
        if name not in schema.hints and not schema.open:
            raise unknown_key(f"{prefix}{name}", value, known=[f"{prefix}{k}" for k in schema.hints])
    given = {name: value for name, value in values.items() if value != MISSING}
    for name in [*schema.required, *values]:
        if name not in given:
            raise ConfigError(f"{prefix}{name}", MISSING, "must be given")
    fields = [(name, _omegaconf_hint(schema.hints.get(name, Any))) for name in given]
    node = OmegaConf.structured(make_dataclass("Section", fields))
    for name, value in given.items():
        try:
            node[name] = value
        except OmegaConfBaseException as error:
            remedy = f"{_name(schema.hints[name])} is expected: {str(error).splitlines()[0]}"
            raise ConfigError(f"{prefix}{name}", value, remedy) from error
        if OmegaConf.is_interpolation(node, name):  # only in a stored file: composing has resolved the others
            raise ConfigError(f"{prefix}{name}", value, "give the value itself")
    checked: dict[str, Any] = OmegaConf.to_container(node, enum_to_str=True)  # type: ignore[assignment]
    return checked


def unknown_key(key: str, value: Any, *, known: Iterable[str]) -> ConfigError:
    """What to tell somebody who set a key that is not there."""
    known = list(known)
    section = key.rpartition(".")[0] or "the top level"
    names = ", ".join(name.rpartition(".")[2] for name in known) or "none"
    return ConfigError(key, value, f"no such key; {did_you_mean(key, known)}keys of {section}: {names}")


def _mapping(value: Any, *, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, value, "a section with keys of its own is expected")
    return value


def _omegaconf_hint(hint: Any) -> Any:
    """The nearest type that OmegaConf can check; `Any` for what only the constructor can judge."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (int, float, str, bool, NoneType):
        return hint
    if hint is Path:
        return str
    if origin is Literal and all(isinstance(value, str) for value in args):
        return Enum("Choice", {value: value for value in args})
    if origin in (Union, UnionType):
        return _omegaconf_union([_omegaconf_hint(member) for member in args])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[str, Any]
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return list[_omegaconf_hint(args[0])]  # type: ignore[misc]
    return Any


def _omegaconf_union(members: Sequence[Any]) -> Any:
    """OmegaConf knows unions of scalars, and anything or None; words among them the constructor checks."""
    others = [member for member in members if member is not NoneType]
    if Any in others or (len(others) > 1 and not all(isinstance(member, type) for member in others)):
        return Any
    if len(others) > 1:
        members = [str if issubclass(member, Enum) else member for member in members]
    return Union[tuple(members)]  # noqa: UP007


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_name(member) for member in get_args(hint))
    if hint is NoneType:
        return "null"
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
