"""How tensors are spread over ranks' files and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distrib.errors import CheckpointError
from distrib.parallel.state import entry
from distrib.state import StateReader, StateWriter, assign_files


def write_all(folder: Path, tensors: dict[str, torch.Tensor], *, size: int) -> list[StateWriter]:
    writers = [StateWriter(folder, rank=rank, size=size, min_file_bytes=1) for rank in range(size)]
    for writer in writers:
        writer.write("model", [entry(name, tensor) for name, tensor in tensors.items()])
    return writers


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_tensor_is_written_once(tmp_path: Path, size: int) -> None:
    """Whatever the number of ranks, together they write each tensor once, and all can be read."""
    tensors = {f"w{n}": torch.rand(n + 1, 3) for n in range(5)}
    writers = write_all(tmp_path, tensors, size=size)
    reader = StateReader(tmp_path)
    assert reader.names("model") == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(reader.read("model", name), tensor)
    files = [file.path for writer in writers for file in writer.written]
    assert len(files) == len(set(files)) == len(list(tmp_path.glob("model/*.safetensors")))


def test_split_weights_have_the_index_transformers_reads(tmp_path: Path) -> None:
    """The index names the file of every tensor, and each named file exists."""
    tensors = {f"w{n}": torch.rand(4) for n in range(6)}
    write_all(tmp_path, tensors, size=3)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert all((tmp_path / "model" / file).exists() for file in index["weight_map"].values())
    assert index["metadata"]["total_size"] == 6 * 16


def test_small_models_stay_one_file(tmp_path: Path) -> None:
    """Below 64 MiB a second file would only be in the way."""
    for rank in range(4):
        StateWriter(tmp_path, rank=rank, size=4).write("model", [entry("w", torch.ones(8))])
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]


def test_files_hold_about_equal_bytes() -> None:
    """Neighbours stay together and no file holds much more than its share."""
    sizes = [100, 300, 50, 50, 200, 100, 200]
    owners = assign_files(sizes, num_files=3)
    assert owners == sorted(owners)
    held = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == n) for n in range(3)]
    assert max(held) <= sum(sizes) / 3 + max(sizes)


def test_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    """A sharded strategy gets the rows it asks for."""
    tensor = torch.arange(20.0).view(10, 2)
    write_all(tmp_path, {"w": tensor}, size=1)
    assert torch.equal(StateReader(tmp_path).read_rows("model", "w", slice(3, 6)), tensor[3:6])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"w": (2, 3), "b": (3,)}, "no parameter 'b'"),
        ({"w": (3, 2)}, r"'w' has shape \(2, 3\) there and \(3, 2\) here"),
        ({}, "this one has no parameter 'w'"),
    ],
)
def test_another_models_weights_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    """The first parameter that does not fit is named."""
    write_all(tmp_path, {"w": torch.ones(2, 3)}, size=1)
    with pytest.raises(CheckpointError, match=message):
        StateReader(tmp_path).check_model(shapes)


def test_notes_come_back(tmp_path: Path) -> None:
    """Small values that only one strategy reads are kept once."""
    for rank in range(2):
        StateWriter(tmp_path, rank=rank, size=2).note("scale", {"value": rank})
    assert StateReader(tmp_path).note("scale") == {"value": 0}
    assert StateReader(tmp_path).note("other") is None


def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path) -> None:
    """Damage is reported with the file's name, not as a parser's error."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        StateReader(tmp_path)
