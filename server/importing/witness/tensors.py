"""A model's tensors by name, read straight from its safetensors files, in float32.

Reads with numpy alone and shares no reader with what it is a witness of. Layout:
https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, tensors). Nothing is
kept: each `take` reads its bytes anew, so that a caller that goes layer by layer needs the memory of
one layer. Not thread-safe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_WHOLE_FILES = "get the publisher's whole files"
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    offset: int  # in bytes from the file's beginning
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]


class Tensors:
    """Tensors by name from safetensors files, float32; knows which were taken.

    Many checkpoints write one prefix before every name (`bert.`, `model.`): `find_prefix` finds it
    by a name that each checkpoint of the family has, and all names are then looked for behind it.

    Args:
        folder: where the files lie.
        files: their names, from the folder.

    Raises:
        ImportRefused: a file cannot be read or is none of safetensors, or two hold one name.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.prefix = ""
        self.folder = folder
        self._places: dict[str, _Place] = {}
        self._taken: set[str] = set()
        for file in files:
            for name, place in _read_header(folder / file).items():
                if name in self._places:
                    raise ImportRefused(
                        f"{folder / file}: {name} is in {self._places[name].file.name} as well"
                    )
                self._places[name] = place

    def find_prefix(self, *known: str) -> None:
        """Look for all names behind the prefix that stands before one of these, from now on.

        Args:
            known: names of a tensor that every checkpoint of the family has; the first one that is
                there counts.

        Raises:
            ImportRefused: none of them is there, or one of them is there behind two prefixes.
        """
        for name in known:
            found = [one for one in self._places if one == name or one.endswith(f".{name}")]
            if len(found) > 1:
                raise ImportRefused(f"{self.folder}: both {found[0]} and {found[1]} are there")
            if found:
                self.prefix = found[0].removesuffix(name)
                return
        raise ImportRefused(
            f"{self.folder}: the weights hold no {' or '.join(known)}; {_WHOLE_FILES}"
        )

    def has(self, name: str) -> bool:
        """Whether `take` would find it."""
        return self.prefix + name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file says; see `take`, which asks for it."""
        return self._place(name).shape

    def take(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A tensor in float32, `shape`; half precision is widened, which is exact.

        Raises:
            ImportRefused: it is missing, has another shape or type, or is not finite.
        """
        place = self._find(name, shape)
        return _finite(self._read(place, 0, math.prod(shape)).reshape(shape), place, name)

    def take_rows(self, name: str, rows: NDArray[np.integer], *shape: int) -> NDArray[np.float32]:
        """Some rows of a table, (len(rows), width), so that a large one need not be read.

        Args:
            rows: integers in any order; one may come twice.
            shape: of the whole table, (rows, width).

        Raises:
            ImportRefused: as `take`, or the table has no such row.
        """
        place = self._find(name, shape)
        num_rows, width = shape
        outside = [int(row) for row in rows if not 0 <= row < num_rows]
        if outside:
            raise ImportRefused(
                f"{place.file}: {self.prefix}{name} has {num_rows} rows, none for {outside[0]}"
            )
        read = {row: self._read(place, row * width, width) for row in {int(row) for row in rows}}
        return _finite(np.stack([read[int(row)] for row in rows]), place, name)

    def look_up(
        self, name: str, texts: Sequence[NDArray[np.int64]], *shape: int
    ) -> list[NDArray[np.float32]]:
        """The rows of a table for each text's numbers, (tokens, width); see `take_rows`."""
        found = self.take_rows(name, np.concatenate(texts), *shape)
        return np.split(found, np.cumsum([len(text) for text in texts])[:-1])

    def unused(self) -> tuple[str, ...]:
        """Full names that nobody took, sorted."""
        return tuple(sorted(self._places.keys() - self._taken))

    def _place(self, name: str) -> _Place:
        place = self._places.get(self.prefix + name)
        if place is None:
            raise ImportRefused(
                f"{self.folder}: the weights hold no {self.prefix}{name}; {_WHOLE_FILES}"
            )
        return place

    def _find(self, name: str, shape: tuple[int, ...]) -> _Place:
        place, full = self._place(name), self.prefix + name
        self._taken.add(full)
        if place.shape != shape:
            raise ImportRefused(
                f"{place.file}: {full} has the shape {list(place.shape)}, not {list(shape)}"
            )
        if place.dtype not in _BYTES:
            raise ImportRefused(f"{place.file}: {full} is of the type {place.dtype}")
        return place

    def _read(self, place: _Place, start: int, count: int) -> NDArray[np.float32]:
        """`count` numbers from the tensor's number `start` on, (count,), float32."""
        width = _BYTES[place.dtype]
        try:
            with place.file.open("rb") as file:
                file.seek(place.offset + start * width)
                content = file.read(count * width)
        except OSError as error:
            raise ImportRefused(f"{place.file}: {error.strerror}") from None
        return _widened(place.dtype, content)


def _finite(found: NDArray[np.float32], place: _Place, name: str) -> NDArray[np.float32]:
    if not np.isfinite(found).all():
        raise ImportRefused(f"{place.file}: {name} holds numbers that are not finite")
    return found


def _widened(dtype: str, content: bytes) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    stored = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    return np.frombuffer(content, stored).astype(np.float32)


def _read_header(path: Path) -> dict[str, _Place]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _MOST_HEADER_BYTES):
                raise ImportRefused(f"{path}: not a safetensors file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
            if 8 + length + end > size:
                raise ImportRefused(f"{path}: {name} is cut off")
            if dtype in _BYTES and end - begin != math.prod(shape) * _BYTES[dtype]:
                raise ImportRefused(f"{path}: {name} has {end - begin} bytes for {list(shape)}")
            places[name] = _Place(path, 8 + length + begin, dtype, shape)
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImportRefused(f"{path}: not a safetensors file: {error}") from None
    return places
