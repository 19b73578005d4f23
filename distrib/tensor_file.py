"""Writing a safetensors file one tensor at a time.

`safetensors.torch.save_file` takes all tensors at once; a checkpoint must not need more memory
than one tensor. The format (https://github.com/huggingface/safetensors#format) is a little-endian
64-bit header length, a JSON header padded with spaces, and the tensors' bytes without holes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
HEADER_ALIGNMENT = 8


def num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a dense tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def header(tensors: Sequence[tuple[str, Sequence[int], torch.dtype]]) -> bytes:
    """The file's first bytes for tensors that follow in this order."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype in tensors:
        end = offset + num_bytes(shape, dtype)
        fields[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class TensorFileWriter:
    """An open safetensors file whose tensors arrive in the order that was announced.

    Digest and size are computed while writing, so that no byte is read again.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, Sequence[int], torch.dtype]]) -> None:
        self._pending = list(reversed(tensors))
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0
        self._write(header(tensors))

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def append(self, tensor: Tensor) -> None:
        """Writes the next announced tensor. Raises ValueError when shape or dtype differ."""
        name, shape, dtype = self._pending.pop()
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(
                f"{name}: announced {tuple(shape)} {dtype}, given {tuple(tensor.shape)} {tensor.dtype}"
            )
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            self._write(flat.view(torch.uint8).numpy().data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                if self._pending:
                    raise ValueError(f"{len(self._pending)} announced tensors were not written")
                self._file.flush()
                os.fsync(self._file.fileno())
