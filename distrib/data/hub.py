"""Data sets of the Hugging Face hub, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distrib.data.base import Corpus, Record, Source
from distrib.data.files import digest
from distrib.data.rows import RowReader
from distrib.data.split import draw, separate
from distrib.errors import ConfigError

Row = dict[str, Any]


class Hub(Source):
    """Records of a data set that the library ``datasets`` can load: a hub name or a local folder.

    The encoded copy is keyed by name and ``revision``: give a commit to notice upstream changes.
    """

    def __init__(
        self,
        *,
        name: str,
        subset: str | None = None,
        revision: str | None = None,
        text: str = "text",
        label: str | None = "label",
        train_split: str = "train",
        heldout_split: str | None = None,
        heldout_fraction: float = 0.1,
        split_seed: int = 0,
        skip_bad_rows: bool = False,
    ) -> None:
        self.name = name
        self.subset = subset
        self.revision = revision
        self.text = text
        self.label = label
        self.train_split = train_split
        self.heldout_split = heldout_split
        self.heldout_fraction = heldout_fraction
        self.split_seed = split_seed
        self.skip_bad_rows = skip_bad_rows

    def fingerprint(self) -> str:
        return digest("hub", vars(self))

    def load(self) -> Corpus:
        reader = RowReader(text=self.text, label=self.label, skip_bad_rows=self.skip_bad_rows)
        train = self._read("train_split", self.train_split, reader=reader)
        if self.heldout_split is None:
            notes = {"bad_rows_skipped": reader.skipped}
            return draw(train, fraction=self.heldout_fraction, seed=self.split_seed, notes=notes)
        heldout = self._read("heldout_split", self.heldout_split, reader=reader)
        notes_given: dict[str, int | str] = {"bad_rows_skipped": reader.skipped, "split": self.heldout_split}
        return separate(train, heldout, notes=notes_given)

    def _read(self, key: str, split: str, *, reader: RowReader) -> list[Record]:
        data = self._dataset(key, split)
        decode = _decoder(data.features, self.label)
        where = f"{self.name}/{split}"
        records = reader.records(
            (f"{where}:{row}", decode(values)) for row, values in enumerate(data, start=1)
        )
        if not records:
            raise ConfigError(f"data.{key}", split, f"this split of {self.name} has no usable rows")
        return records

    def _dataset(self, key: str, split: str) -> Any:
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(self.name, self.subset, split=split, revision=self.revision)
        except (ConnectionError, FileNotFoundError) as error:
            remedy = (
                "not on this machine, and the hub could not be reached or does not have it; "
                "load it once with a network, or use data=table with a local file"
            )
            raise ConfigError("data.name", self.name, remedy) from error
        except ValueError as error:
            raise ConfigError(f"data.{key}", split, str(error)) from error


def _decoder(features: Mapping[str, Any], label: str | None) -> Callable[[Mapping[str, Any]], Row]:
    """Class numbers back to class names, for one label a row and for a list of tags."""
    if label is None or label not in features:
        return dict
    column, feature = label, features[label]
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)

    def decode(row: Mapping[str, Any]) -> Row:
        value = row[column]
        if names is None or value is None:
            return dict(row)
        return {**row, column: names[value] if isinstance(value, int) else [names[one] for one in value]}

    return decode
