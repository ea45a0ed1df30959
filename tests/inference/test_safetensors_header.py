"""A safetensors file's header tells what it holds; no weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.inference.safetensors_header import NotSafetensors, read_header, read_shapes

WHOLE = np.arange(24, dtype=np.float32).reshape(6, 4)


def test_each_tensor_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": WHOLE, "ids": np.arange(5)}, file, metadata={"format": "pt"})
    header = read_header(file)
    assert header.keys() == {"weight", "ids"}
    entry = header["weight"]
    assert (entry.dtype, entry.shape) == ("F32", (6, 4))
    assert file.read_bytes()[entry.begin : entry.end] == WHOLE.tobytes()


def test_a_file_larger_than_memory_is_told_without_reading_it(tmp_path: Path) -> None:
    """It is sparse: only its header takes room."""
    tensor = {"dtype": "F32", "shape": [2**24, 2**10], "data_offsets": [0, 2**36]}
    header = json.dumps({"weight": tensor}).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(opened.tell() + 2**36)
    assert read_shapes([file]) == {"weight": (2**24, 2**10)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"a": 1}', "not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "it is cut off"),
        (b'{"a": {}, "a": {}}', "a is there twice"),
        (b"[" * 100_000, "not a safetensors file"),
        (b"\xff", "not a safetensors file"),
    ],
)
def test_a_header_that_is_none_is_refused_by_its_path(
    tmp_path: Path, header: bytes, reason: str
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(NotSafetensors, match=rf"model\.safetensors: .*{reason}"):
        read_header(file)


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets"),
    [
        ("F32", [1], [4, 8]),  # a gap before it
        ("F32", [1], [2, 6]),
        ("F32", [2], [0, 4]),
        ("BF16", [2], [0, 8]),
        ("F32", [1], [4, 0]),
    ],
)
def test_a_tensor_that_lies_elsewhere_than_the_format_says_is_refused(
    tmp_path: Path, dtype: str, shape: list[int], offsets: list[int]
) -> None:
    """Read from there it would be other numbers."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    header = json.dumps({"a": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(NotSafetensors, match=r"model\.safetensors: .*a lies at a wrong place"):
        read_header(file)


def test_two_tensors_of_one_place_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(NotSafetensors, match="b lies at a wrong place"):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 8, b"\xff" * 9])
def test_a_file_that_is_too_short_for_a_header_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(NotSafetensors, match=r"model\.safetensors: not a safetensors file"):
        read_header(tmp_path / "model.safetensors")


def test_a_tensor_that_two_files_hold_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        save_file({"weight": WHOLE}, file)
    said = r"two\.safetensors: holds weight, which one\.safetensors holds too"
    with pytest.raises(NotSafetensors, match=said):
        read_shapes(files)


def test_a_header_that_would_take_all_memory_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", 2**40))
        opened.truncate(2**41)
    with pytest.raises(NotSafetensors, match="its header is too long"):
        read_header(file)
