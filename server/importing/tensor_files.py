"""Tensors of safetensors files in numpy, some rows at a time, and a new file made of them.

Layout: https://huggingface.co/docs/safetensors. Half precision is widened to float32, which is
exact. Pure functions of files; any thread may call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused
from server.inference.safetensors_header import HeaderEntry, NotSafetensors, read_header

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Where a tensor lies."""

    file: Path
    entry: HeaderEntry

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file says."""
        return self.entry.shape

    @property
    def is_float(self) -> bool:
        """Whether it can be read as float32."""
        return self.entry.dtype in _FLOATS

    def read(self) -> NDArray[np.float32]:
        """All of it.

        Raises:
            ImportRefused: it holds no floats.
            OSError: the file cannot be read.
        """
        if not self.is_float:
            raise ImportRefused(f"{self.file}: holds {self.entry.dtype}, where floats should be")
        return self.read_rows(0, self.shape[0] if self.shape else 1)

    def read_rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows of a tensor of floats, (end - begin, ...); a number without shape is one row."""
        stored = _FLOATS[self.entry.dtype]
        width = math.prod(self.shape[1:]) * np.dtype(stored).itemsize
        found = np.frombuffer(self._read(begin * width, end * width), stored)
        if self.entry.dtype == "BF16":
            found = widened_bfloat16(found)
        return found.astype(np.float32, copy=False).reshape((end - begin, *self.shape[1:]))

    def read_bytes(self) -> bytes:
        """All of it, as it is stored."""
        return self._read(0, self.entry.end - self.entry.begin)

    def _read(self, begin: int, end: int) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.entry.begin + begin)
            return file.read(end - begin)


def widened_bfloat16(stored: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers whose upper halves these 16 bits each are, exactly; numpy knows no bfloat16."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def read_tensor_files(folder: Path, files: Iterable[str]) -> dict[str, TensorFile]:
    """All tensors by name; reads headers alone.

    Raises:
        ImportRefused: a file cannot be read, or two hold a tensor of one name.
    """
    found: dict[str, TensorFile] = {}
    for file in files:
        try:
            entries = read_header(folder / file)
        except OSError as error:
            raise ImportRefused(f"{folder / file}: {error.strerror}") from None
        except NotSafetensors as error:
            raise ImportRefused(str(error)) from None
        for name, entry in entries.items():
            if name in found:
                raise ImportRefused(f"{folder / file}: {name} is in {found[name].file.name}, too")
            found[name] = TensorFile(folder / file, entry)
    return found


def write_tensor_file(
    file: Path, tensors: Mapping[str, TensorFile], content: Callable[[str], Iterator[bytes]]
) -> None:
    """Write a safetensors file with tensors of these names and shapes; floats are float32 in it.

    Args:
        content: each tensor's bytes, a part at a time.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    names = sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name))  # aligned
    for name in names:
        tensor = tensors[name]
        length = math.prod(tensor.shape) * _item_bytes(tensor)
        header[name] = {
            "dtype": "F32" if tensor.is_float else tensor.entry.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    with file.open("wb") as opened:
        opened.write(len(written).to_bytes(8, "little"))
        opened.write(written)
        for name in names:
            for part in content(name):
                opened.write(part)


def _item_bytes(tensor: TensorFile) -> int:
    if tensor.is_float:
        return 4
    stored = tensor.entry.end - tensor.entry.begin
    return stored // max(1, math.prod(tensor.shape))
