"""The streaming safetensors writer against the safetensors library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distrib.tensor_file import DTYPE_NAMES, TensorFileWriter


def announce(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]


def test_safetensors_reads_every_dtype_and_shape(tmp_path: Path) -> None:
    """What is written is what the safetensors library reads, scalars and empty tensors included."""
    tensors = {f"t{n}": (torch.rand(3, 5) * 100).to(dtype) for n, dtype in enumerate(DTYPE_NAMES)}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "view": torch.arange(12.0).view(3, 4).T,
    }
    path = tmp_path / "t.safetensors"
    with TensorFileWriter(path, announce(tensors)) as file:
        for tensor in tensors.values():
            file.append(tensor)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_digest_and_size_are_the_files(tmp_path: Path) -> None:
    """The digest made while writing is the finished file's."""
    path = tmp_path / "t.safetensors"
    with TensorFileWriter(path, announce({"a": torch.ones(7)})) as file:
        file.append(torch.ones(7))
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.size == path.stat().st_size


@pytest.mark.parametrize("wrong", [torch.ones(6), torch.ones(7).double()])
def test_a_tensor_unlike_its_announcement_is_refused(tmp_path: Path, wrong: torch.Tensor) -> None:
    """A wrong shape or type would make every later offset a lie."""
    with (
        pytest.raises(ValueError, match="a: announced"),
        TensorFileWriter(tmp_path / "t.safetensors", announce({"a": torch.ones(7)})) as file,
    ):
        file.append(wrong)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    """A file that ends early does not pass for whole."""
    with (
        pytest.raises(ValueError, match="1 announced"),
        TensorFileWriter(tmp_path / "t.safetensors", announce({"a": torch.ones(7)})),
    ):
        pass
