"""From a ``_target_`` in a configuration to the object it names, and to nothing else.

A configuration may come from somebody else's run directory, so it must not be able to name just any
callable: block-lists let ``numpy.load(allow_pickle=True)`` and a shell helper through. Here a
target is a *class*, defined in distrib or in a package the user named in ``plugins``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distrib.errors import ConfigError, DistribError

Target = dict[str, Any]
"""``{"_target_": "package.module.Class", **constructor arguments}``."""


def build(target: Target, *, key: str, plugins: Sequence[str]) -> Any:
    """The object that ``target`` describes, with nested targets built first.

    Raises `ConfigError` naming the dotted key for a class outside distrib and ``plugins``, one that
    cannot be imported, arguments its constructor does not take, and values it refuses.
    """
    cls = locate(target, key=key, plugins=plugins)
    arguments = {
        name: _build_nested(value, key=f"{key}.{name}", plugins=plugins)
        for name, value in target.items()
        if name != "_target_"
    }
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key}._target_", target["_target_"], f"its constructor: {error}") from error
    try:
        return cls(**arguments)
    except DistribError:
        raise
    except (TypeError, ValueError) as error:
        remedy = f"its constructor refuses these arguments: {error}"
        raise ConfigError(f"{key}._target_", target["_target_"], remedy) from error


def locate(target: Mapping[str, Any], *, key: str, plugins: Sequence[str]) -> type:
    """The class that ``target`` names. Raises `ConfigError` where it may not or cannot be used."""
    path = target.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ConfigError(f"{key}._target_", path, "needs the full name of a class, as package.module.Class")
    module_name, _, name = path.rpartition(".")
    _check_allowed(path, module_name, key=key, plugins=plugins)
    found = getattr(_import(module_name, path, key=key), name, None)
    if found is None:
        raise ConfigError(f"{key}._target_", path, f"module {module_name} has no class {name}")
    if not inspect.isclass(found):
        raise ConfigError(f"{key}._target_", path, "is not a class")
    _check_allowed(path, found.__module__, key=key, plugins=plugins)
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean x? "`` for the nearest of ``known``, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _build_nested(value: Any, *, key: str, plugins: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(dict(value), key=key, plugins=plugins)
        return {k: _build_nested(item, key=f"{key}.{k}", plugins=plugins) for k, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_build_nested(item, key=f"{key}[{i}]", plugins=plugins) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _check_allowed(path: str, module: str, *, key: str, plugins: Sequence[str]) -> None:
    """The module a class is *defined* in counts too, or ``distrib.x.subprocess``'s content would pass."""
    if any(module == package or module.startswith(f"{package}.") for package in ("distrib", *plugins)):
        return
    package = module.partition(".")[0]
    allow = ",".join([*plugins, package])
    raise ConfigError(
        f"{key}._target_",
        path,
        f"only classes of distrib and of the packages in plugins may be built; if you trust {package}, "
        f"add plugins=[{allow}]",
    )


def _import(module: str, path: str, *, key: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"cannot be imported ({error}); is its package installed, or on PYTHONPATH?"
        raise ConfigError(f"{key}._target_", path, remedy) from error
