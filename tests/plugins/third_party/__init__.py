"""Somebody else's package: what a strategy needs to be usable from a config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from distrib.strategies.single import Single


class Mine(Single):
    """The one-process strategy under another name, with one argument of every simple type."""

    def __init__(
        self,
        *,
        size: int,
        ratio: float = 0.5,
        on: bool = False,
        label: str = "a",
        limit: int | None = None,
        mode: Literal["fast", "exact"] = "exact",
        sizes: Sequence[int] = (),
        extra: Mapping[str, Any] | None = None,
        inner: object = None,
    ) -> None:
        if size == 13:
            raise ValueError("13 brings no luck")
        self.inner = inner
