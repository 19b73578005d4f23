"""Rows of any tabular source made into records, with the row's place in every complaint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distrib.data.base import Record
from distrib.errors import DataError


@dataclass(kw_only=True)
class RowReader:
    """Turns rows into records, and counts the bad rows where it was asked to skip them."""

    text: str
    """The column with the text, or with a list of words."""
    label: str | None
    """The column with the class, or with a list of tags; None for a language model."""
    skip_bad_rows: bool
    skipped: int = field(default=0, init=False)

    def records(self, rows: Iterable[tuple[str, Mapping[str, Any] | DataError]]) -> list[Record]:
        """Records of ``(where, row)`` pairs. Raises `DataError` at the first bad row unless skipping."""
        records = []
        for where, row in rows:
            try:
                records.append(self._record(row, where=where))
            except DataError:
                if not self.skip_bad_rows:
                    raise
                self.skipped += 1
        return records

    def _record(self, row: Mapping[str, Any] | DataError, *, where: str) -> Record:
        if isinstance(row, DataError):
            raise row
        text = _value(row, self.text, where=where)
        label = None if self.label is None else _value(row, self.label, where=where)
        if not isinstance(text, str):
            return _tagged(text, label, where=where)
        record: dict[str, Any] = {"text": text, "where": where}
        return record if label is None else {**record, "label": str(label)}


def _value(row: Mapping[str, Any], column: str, *, where: str) -> Any:
    if column not in row:
        found = ", ".join(str(name) for name in row) or "none"
        raise DataError(
            f"{where}: no column '{column}' (columns: {found}); data.text and data.label name them"
        )
    value = row[column]
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        raise DataError(f"{where}: column '{column}' is empty")
    return value


def _tagged(words: Any, tags: Any, *, where: str) -> Record:
    if not isinstance(words, list) or not isinstance(tags, list):
        raise DataError(f"{where}: expected text, or a list of words with a list of tags")
    if len(words) != len(tags):
        raise DataError(f"{where}: {len(words)} words but {len(tags)} tags")
    return {"words": [str(word) for word in words], "tags": [str(tag) for tag in tags], "where": where}
