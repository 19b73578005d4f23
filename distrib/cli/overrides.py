"""What the user typed after the command: ``key=value`` in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from distrib.cli.groups import GROUPS
from distrib.config import RunConfig, flatten, to_dict
from distrib.errors import ConfigError
from distrib.targets import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Override:
    """One ``key=value`` from the command line."""

    text: str
    key: str
    """The dotted key or the group, without Hydra's prefixes and package."""

    @property
    def value(self) -> str:
        """What stands after the equals sign, as typed."""
        return self.text.partition("=")[2]

    @property
    def is_choice(self) -> bool:
        """Whether it chooses an option of a group rather than setting a value."""
        return self.key.partition("/")[0] in (*GROUPS, "hydra")

    @property
    def for_hydra(self) -> str:
        """Values are forced in (``++``): whether a key exists is judged by the schema, not by the files."""
        plain = self.text[0] not in "+~" and not self.is_choice and not self.key.startswith("hydra.")
        return f"++{self.text}" if plain else self.text


def parse(overrides: Sequence[str]) -> list[Override]:
    """Splits overrides by Hydra's grammar. Raises `ConfigError` for what it cannot read."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            key, _, value = text.partition("=")
            reason = str(error).splitlines()[0]
            remedy = f"write key=value, with quotes around a value that holds signs ({reason})"
            raise ConfigError(key, value, remedy) from error
        parsed.append(Override(text=text, key=override.key_or_group))
        _check_known(parsed[-1])
    return parsed


def _check_known(override: Override) -> None:
    """A key whose first word is wrong is refused as it was typed; the rest is the schema's to judge."""
    top = [name for name in to_dict(RunConfig(name="run")) if name != "choices"]
    if not override.is_choice and override.key.partition(".")[0] not in top:
        known = [*flatten(RunConfig(name="run")), *GROUPS] if "." in override.key else [*top, "experiment"]
        near = did_you_mean(override.key, known)
        raise ConfigError(override.key, override.value, f"no such key; {near}there are: {', '.join(top)}")
