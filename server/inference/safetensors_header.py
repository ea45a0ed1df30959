"""What a safetensors file holds, from its header alone: no weight is read.

Layout: https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, tensors). Pure
functions of files; any thread may call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as the library itself
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}


class NotSafetensors(ValueError):
    """A file that cannot be read as one of safetensors; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """A tensor as the header tells of it; `begin` and `end` in bytes from the start of the file."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, HeaderEntry]:
    """The tensors of a file by their names, in the order of the header.

    Raises:
        NotSafetensors: it is none, is cut off, or names a tensor twice or at a wrong place.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = _LENGTH_BYTES + int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if start - _LENGTH_BYTES > _MAX_HEADER_BYTES:
            raise NotSafetensors(f"{file}: not a safetensors file: its header is too long")
        content = opened.read(min(start, size) - _LENGTH_BYTES) if size > _LENGTH_BYTES else b""
    try:
        header = json.loads(content, object_pairs_hook=_each_once)
        header.pop("__metadata__", None)
        entries = {name: _entry(entry, start) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotSafetensors(f"{file}: not a safetensors file: {error}") from None
    if any(entry.end > size for entry in entries.values()):
        raise NotSafetensors(f"{file}: not a safetensors file: it is cut off")
    strange = _misplaced(entries, start)
    if strange is not None:
        raise NotSafetensors(f"{file}: not a safetensors file: {strange} lies at a wrong place")
    return entries


def _misplaced(entries: Mapping[str, HeaderEntry], start: int) -> str | None:
    """A tensor that overlaps another, leaves a gap before it, or is not as large as its shape."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        numbers = math.prod(entry.shape)
        size = _BYTES.get(entry.dtype, 0) * numbers
        if entry.begin != end or entry.end < end or size not in (0, entry.end - entry.begin):
            return name
        end = entry.end
    return None


def read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of these files by their names.

    Raises:
        NotSafetensors: see `read_header`; or two files hold a tensor of one name.
        OSError: a file cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    found_in: dict[str, Path] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in shapes:
                raise NotSafetensors(
                    f"{file}: holds {name}, which {found_in[name].name} holds too; only one can count"
                )
            shapes[name], found_in[name] = entry.shape, file
    return shapes


def _entry(entry: Any, start: int) -> HeaderEntry:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    return HeaderEntry(str(entry["dtype"]), shape, begin, end)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is there twice")
    return found
