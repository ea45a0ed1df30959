"""Where each tensor lies in safetensors files, found by its content.

A graph that is made here holds no weights: it points at the bytes of the official files. Reads with
numpy alone. Pure functions of files; any thread may call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused
from server.importing.tensor_files import widened_bfloat16
from server.inference.safetensors_header import NotSafetensors, read_header

# Fused projections are stored as one matrix of three parts (query, key, value) or two.
PARTS = (3, 2)
# Numbers by what safetensors calls them: as unsigned integers, and the bits of the exponent.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_AT_ONCE = 1 << 18  # numbers that are looked at together; what that takes stays in a core's cache


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file, in bytes from the start of the file."""

    file: str
    offset: int
    length: int
    dtype: str  # as safetensors calls it


def digest(dtype: str, shape: Sequence[int], content: bytes | memoryview) -> str:
    """A key that two tensors share only when type, shape and every byte agree."""
    return f"{dtype} {list(shape)} {hashlib.sha256(content).hexdigest()}"


def read_stored_tensors(folder: Path, files: Iterable[str]) -> dict[str, StoredTensor]:
    """Where each tensor of these safetensors files lies, by its `digest`.

    Those in half precision are found by what they are in float32, fused ones also by their parts.

    Raises:
        ImportRefused: a file cannot be read, is none of safetensors, or holds a number that is not
            finite.
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        try:
            header = read_header(folder / file)
            content = memoryview((folder / file).read_bytes())
        except OSError as error:
            raise ImportRefused(f"{folder / file}: {error.strerror}") from None
        except NotSafetensors as error:
            raise ImportRefused(str(error)) from None
        for name, entry in header.items():
            tensor = StoredTensor(file, entry.begin, entry.end - entry.begin, entry.dtype)
            part = content[entry.begin : entry.end]
            if not _is_finite(entry.dtype, part):
                raise ImportRefused(
                    f"{folder / file}: {name} holds NaN or infinity: a training or a conversion "
                    "went wrong; get the publisher's files anew"
                )
            for key, place in _keys(tensor, entry.shape, part):
                stored.setdefault(key, place)
    return stored


def _keys(
    tensor: StoredTensor, shape: Sequence[int], content: memoryview
) -> Iterator[tuple[str, StoredTensor]]:
    """The digests of a tensor and of its parts."""
    for parts in (1, *(n for n in PARTS if shape and len(shape) <= 2 and shape[0] % n == 0)):
        length = tensor.length // parts
        part_shape = [shape[0] // parts, *shape[1:]] if parts > 1 else shape
        for number in range(parts):
            begin = number * length
            part = content[begin : begin + length]
            place = StoredTensor(tensor.file, tensor.offset + begin, length, tensor.dtype)
            wide = _widened(tensor.dtype, part)
            if wide is None:
                yield digest(tensor.dtype, part_shape, part), place
            else:
                yield digest("F32", part_shape, wide.data.cast("B")), place


def _is_finite(dtype: str, content: memoryview) -> bool:
    """Whether no number is NaN or infinite: in those all bits of the exponent are set."""
    if dtype not in _EXPONENTS or not content:
        return True
    unsigned, exponent = _EXPONENTS[dtype]
    numbers: NDArray[Any] = np.frombuffer(content, unsigned)
    parts = (numbers[start : start + _AT_ONCE] for start in range(0, len(numbers), _AT_ONCE))
    return not any(((part & exponent) == exponent).any() for part in parts)


def _widened(dtype: str, content: memoryview) -> NDArray[np.float32] | None:
    """Numbers in half precision as float32, exactly; None if they are others, or none."""
    if not content:
        return None
    if dtype == "F16":
        return np.frombuffer(content, np.float16).astype(np.float32)
    if dtype == "BF16":
        return widened_bfloat16(np.frombuffer(content, "<u2"))
    return None
