"""Tensors come out as they were stored, and what is not there is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.errors import ImportRefused
from server.importing.witness.tensors import Tensors

FILE = "model.safetensors"
VALUES = np.array([[1.5, -2.25, 0.0], [3.0, 6.1e-5, -65504.0]], np.float32)


def store(folder: Path, **tensors: np.ndarray) -> Tensors:
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, folder / FILE)
    return Tensors(folder, [FILE])


def write_file(path: Path, dtype: str, content: bytes, shape: list[int]) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


@pytest.mark.parametrize(
    ("dtype", "content"),
    [
        ("F64", VALUES.astype(np.float64)),
        ("F32", VALUES),
        ("F16", VALUES.astype(np.float16)),
        ("BF16", (VALUES.view(np.uint32) >> 16).astype(np.uint16)),
    ],
)
def test_every_type_is_widened_exactly(tmp_path: Path, dtype: str, content: np.ndarray) -> None:
    write_file(tmp_path / FILE, dtype, content.tobytes(), [2, 3])
    exact = content.astype(np.uint32) << 16 if dtype == "BF16" else content.astype(np.float32)
    found = Tensors(tmp_path, [FILE]).take("a", 2, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), exact.view(np.uint32))


def test_a_tensor_is_taken_in_the_shape_that_is_meant_or_refused_by_name(tmp_path: Path) -> None:
    tensors = store(tmp_path, a=VALUES, spoilt=np.full_like(VALUES, np.nan))
    np.testing.assert_array_equal(tensors.take("a", 2, 3), VALUES)
    assert tensors.shape("a") == (2, 3)
    for name, shape, reason in (
        ("a", (3, 2), r"a has the shape \[2, 3\], not \[3, 2\]"),
        ("b", (2, 3), "the weights hold no b"),
        ("spoilt", (2, 3), "spoilt holds numbers that are not finite"),
    ):
        with pytest.raises(ImportRefused, match=reason):
            tensors.take(name, *shape)


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="a is of the type I8"):
        store(tmp_path, a=VALUES.astype(np.int8)).take("a", 2, 3)


def test_rows_are_read_without_the_table_and_none_beyond_it(tmp_path: Path) -> None:
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    tensors = store(tmp_path, a=table)
    np.testing.assert_array_equal(
        tensors.take_rows("a", np.array([9, 0, 9]), 10, 2), table[[9, 0, 9]]
    )
    first, second = tensors.look_up("a", [np.array([1, 2]), np.array([3])], 10, 2)
    np.testing.assert_array_equal(first, table[1:3])
    np.testing.assert_array_equal(second, table[3:4])
    for row in (10, -1):
        with pytest.raises(ImportRefused, match=f"a has 10 rows, none for {row}"):
            tensors.take_rows("a", np.array([0, row]), 10, 2)


def test_all_names_are_behind_the_prefix_of_a_known_one(tmp_path: Path) -> None:
    tensors = store(tmp_path, bert__words=VALUES, bert__other=VALUES, stray=VALUES)
    tensors.find_prefix("absent", "words")
    assert tensors.has("other")
    assert not tensors.has("stray")
    tensors.take("words", 2, 3)
    assert tensors.unused() == ("bert.other", "stray")
    with pytest.raises(ImportRefused, match=r"the weights hold no bert\.stray"):
        tensors.take("stray", 2, 3)


def test_a_prefix_that_is_none_or_two_is_refused(tmp_path: Path) -> None:
    tensors = store(tmp_path, a__words=VALUES, b__words=VALUES, otherwords=VALUES)
    with pytest.raises(ImportRefused, match=r"both a\.words and b\.words are there"):
        tensors.find_prefix("words")
    with pytest.raises(ImportRefused, match="the weights hold no first or second"):
        tensors.find_prefix("first", "second")


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    for file in ("1.safetensors", "2.safetensors"):
        save_file({"a": VALUES}, tmp_path / file)
    with pytest.raises(ImportRefused, match=r"a is in 1\.safetensors as well"):
        Tensors(tmp_path, ["1.safetensors", "2.safetensors"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
        (b"", "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ImportRefused, match=reason):
        Tensors(tmp_path, [FILE])


def test_a_file_that_is_cut_off_or_contradicts_itself_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / FILE, "F32", VALUES.tobytes(), [2, 4])
    with pytest.raises(ImportRefused, match=r"a has 24 bytes for \[2, 4\]"):
        Tensors(tmp_path, [FILE])
    write_file(tmp_path / FILE, "F32", VALUES.tobytes(), [2, 3])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-1])
    with pytest.raises(ImportRefused, match="a is cut off"):
        Tensors(tmp_path, [FILE])
    with pytest.raises(ImportRefused, match="No such file"):
        Tensors(tmp_path, ["absent.safetensors"])
