"""Files of vectors that grow, can be gone on with after a power cut, and appear when complete.

What is written lies in `OUT.partial` until the end. Knows nothing of models. Each output is used
by one thread at a time.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from server.delivery.locking import try_lock
from server.delivery.syncing import sync_folder
from server.errors import MissingExtra, OutputFileError
from server.inference.vector_form import json_values, stored

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_TEXTS = 8192  # vectors that are in memory while a Parquet file is written


def json_lines(first: int, vectors: NDArray[np.float32]) -> bytes:
    """One object a line, {"index": 0, "embedding": [...]}; `first` is the first vector's index."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(
        orjson.dumps({"index": index, "embedding": value}, option=option)
        for index, value in enumerate(json_values(vectors), first)
    )


class GrowingFile:
    """A `.jsonl` file; the other formats change what is written.

    Args:
        path: where it appears in the end; `partial_of(path)` until then.
        kept_bytes: go on behind so many bytes of what is there; 0 begins anew.

    Raises:
        OutputFileError: it cannot be opened, is shorter than that, or another process writes it.
    """

    def __init__(self, path: Path, dimensions: int, kept_bytes: int) -> None:
        self.path = path
        self.partial = partial_of(path)
        self._dimensions = dimensions
        # Append, so that the bytes of another process that holds the lock are not touched.
        self._file = _open(self.partial, "ab" if kept_bytes == 0 else "r+b")
        try:
            _lock(self._file, self.partial)
            size = os.fstat(self._file.fileno()).st_size
            if size < kept_bytes:
                raise OutputFileError(
                    f"{self.partial} has {size} bytes, less than its checkpoint says: {kept_bytes}"
                )
            self._file.truncate(kept_bytes)
            self._file.seek(kept_bytes)
            if kept_bytes == 0:
                self._begin()
        except BaseException:
            self._file.close()
            raise

    def append(self, first: int, vectors: NDArray[np.float32]) -> int:
        """Write vectors (texts, dimensions) for good; returns the file's size.

        Args:
            first: index of the first of them.
        """
        self._file.write(self._encode(first, vectors))
        _flush_to_disk(self._file)
        return self._file.tell()

    def finish(self, texts: int) -> None:
        """Let the file appear, complete."""
        _appear(self.partial, self.path)

    def close(self) -> None:
        """Let go of the file, complete or not."""
        self._file.close()

    def _begin(self) -> None:
        """Write what stands before the first vector."""

    def _encode(self, first: int, vectors: NDArray[np.float32]) -> bytes:
        return json_lines(first, vectors)


class NpyFile(GrowingFile):
    """A `.npy` file, float32 (texts, dimensions), little-endian, C order."""

    def finish(self, texts: int) -> None:
        self._complete(texts)
        super().finish(texts)

    def _complete(self, texts: int) -> None:
        """Write the number of vectors into the header."""
        with _open(self.partial, "r+b") as file:  # opened anew: ours may only append
            file.write(self._header(texts))
            _flush_to_disk(file)

    def _begin(self) -> None:
        self._file.write(self._header(0))

    def _header(self, texts: int) -> bytes:
        """The header, equally long whatever the number of vectors."""
        header = io.BytesIO()  # numpy leaves room for more digits
        shape = (texts, self._dimensions)
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        return header.getvalue()

    def _encode(self, first: int, vectors: NDArray[np.float32]) -> bytes:
        return stored(vectors).tobytes()


class ParquetFile(NpyFile):
    """A `.parquet` file: `index` int64, `embedding` fixed-size list of float32.

    Its format wants its end written last and cannot be gone on with, so the vectors lie in a
    `.npy` file until all are there.
    """

    def finish(self, texts: int) -> None:
        self._complete(texts)
        scratch = self.path.with_name(self.path.name + ".writing")
        try:
            _write_parquet(scratch, self._dimensions, self._groups(texts))
            with _open(scratch, "r+b") as file:
                _flush_to_disk(file)
            _appear(scratch, self.path)
        except OSError as error:
            raise OutputFileError(f"{scratch}: {error.strerror or error}") from error
        finally:
            scratch.unlink(missing_ok=True)
        self.partial.unlink()

    def _groups(self, texts: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        vectors = np.load(self.partial, mmap_mode="r")
        for first in range(0, texts, ROW_GROUP_TEXTS):
            yield first, np.asarray(vectors[first : first + ROW_GROUP_TEXTS])


_BY_SUFFIX = {".npy": NpyFile, ".jsonl": GrowingFile, ".parquet": ParquetFile}


def partial_of(path: Path) -> Path:
    """Where an output lies until it is complete."""
    return path.with_name(path.name + ".partial")


def format_of(path: Path) -> type[GrowingFile]:
    """The class that writes this file.

    Raises:
        OutputFileError: its name tells no format, or its folder is not there.
        MissingExtra: it is a Parquet file, and pyarrow is not installed.
    """
    kind = _BY_SUFFIX.get(path.suffix)
    if kind is None:
        raise OutputFileError(f"{path}: the name must end in .npy, .jsonl or .parquet")
    if not path.parent.is_dir():
        raise OutputFileError(f"{path}: there is no folder {path.parent}")
    if kind is ParquetFile and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(f"writing {path}", "pyarrow", "parquet")
    return kind


def _write_parquet(
    path: Path, dimensions: int, groups: Iterator[tuple[int, NDArray[np.float32]]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dimensions), nullable=False),
        ]
    )
    # Vectors look random: a dictionary or a compressor would only cost time.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first, vectors in groups:
            writer.write_table(_table(schema, first, vectors))


def _table(schema: pa.Schema, first: int, vectors: NDArray[np.float32]) -> pa.Table:
    import pyarrow as pa

    index = pa.array(np.arange(first, first + len(vectors)))
    flat = pa.array(vectors.reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.Table.from_arrays([index, embedding], schema=schema)


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise OutputFileError(f"{path}: {error.strerror}") from error


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep a second process away until this one ends, however it ends."""
    if not try_lock(file):
        raise OutputFileError(f"{path}: another process writes it")


def _appear(partial: Path, path: Path) -> None:
    if path.exists():
        raise OutputFileError(f"{path} has come into being meanwhile; it is not overwritten")
    partial.replace(path)
    sync_folder(path.parent)
