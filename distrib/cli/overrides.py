"""What the user typed after the command: ``key=value`` in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from distrib.cli.groups import GROUPS, SWEEP, no_such_option
from distrib.config import RunConfig, flatten, to_dict
from distrib.errors import ConfigError
from distrib.targets import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Override:
    """One ``key=value`` from the command line."""

    text: str
    key: str
    """The dotted key or the group, without Hydra's prefixes and package."""
    is_choice: bool
    """Whether it chooses an option of a group rather than setting a value."""

    @property
    def value(self) -> str:
        """What stands after the equals sign, as typed."""
        return self.text.partition("=")[2]

    @property
    def for_hydra(self) -> str:
        """Values are forced in (``++``): whether a key exists is judged by the schema, not by the files."""
        as_it_is = self.is_choice or self.is_hydras or self.text[0] in "+~"
        return self.text if as_it_is else f"++{self.text}"

    @property
    def is_hydras(self) -> bool:
        """Whether it is about Hydra itself, as ``hydra.searchpath``."""
        return self.key.startswith(("hydra.", "hydra/"))


def parse(overrides: Sequence[str]) -> list[Override]:
    """Splits overrides by Hydra's grammar. Raises `ConfigError` for what it cannot read."""
    parser = OverridesParser.create()
    parsed = [_parse_one(parser, text) for text in overrides]
    for override in parsed:
        _check_known(override)
    return parsed


def _parse_one(parser: OverridesParser, text: str) -> Override:
    try:
        parsed = parser.parse_override(text)
    except HydraException as error:
        left, _, right = text.partition("=")
        reason = str(error).splitlines()[0]
        remedy = f"write key=value, with quotes around a value that holds signs ({reason})"
        raise ConfigError(left, right, remedy) from error
    key: str = parsed.key_or_group
    value: Any = parsed.value()
    is_group = key in GROUPS and not isinstance(value, dict)
    if is_group and not parsed.is_delete() and (value is None or isinstance(value, int | float)):
        raise no_such_option(key, "null" if value is None else value)
    return Override(text=text, key=key, is_choice=is_group)


def _check_known(override: Override) -> None:
    """A key whose first word is wrong is refused as it was typed; the rest is the schema's to judge."""
    top = [name for name in to_dict(RunConfig(name="run")) if name != "choices"] + [SWEEP]
    if override.is_choice or override.is_hydras or override.key.partition(".")[0] in top:
        return
    known = [*flatten(RunConfig(name="run")), *GROUPS] if "." in override.key else [*top, "experiment"]
    near = did_you_mean(override.key, known)
    raise ConfigError(override.key, override.value, f"no such key; {near}there are: {', '.join(top)}")
