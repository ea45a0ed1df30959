from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from server.errors import ImportRefused
from server.importing.stored_tensors import digest, read_stored_tensors

WHOLE = np.arange(24, dtype=np.float32).reshape(6, 4)


def float32_key(values: NDArray[np.float32]) -> str:
    return digest("F32", values.shape, values.tobytes())


def test_a_tensor_is_found_by_its_content_and_points_at_its_bytes(tmp_path: Path) -> None:
    save_file({"weight": WHOLE, "ids": np.arange(5)}, tmp_path / "model.safetensors")
    stored = read_stored_tensors(tmp_path, ["model.safetensors"])
    place = stored[float32_key(WHOLE)]
    content = (tmp_path / "model.safetensors").read_bytes()
    assert (place.file, place.dtype) == ("model.safetensors", "F32")
    assert content[place.offset : place.offset + place.length] == WHOLE.tobytes()
    assert stored[digest("I64", (5,), np.arange(5).tobytes())].length == 40


def test_type_and_shape_tell_tensors_of_equal_bytes_apart(tmp_path: Path) -> None:
    save_file({"weight": WHOLE}, tmp_path / "model.safetensors")
    stored = read_stored_tensors(tmp_path, ["model.safetensors"])
    assert float32_key(WHOLE.reshape(4, 6)) not in stored
    assert digest("I32", WHOLE.shape, WHOLE.tobytes()) not in stored


@pytest.mark.parametrize("parts", [2, 3])
def test_fused_projections_are_found_by_their_parts(tmp_path: Path, parts: int) -> None:
    save_file({"qkv": WHOLE, "bias": WHOLE[:, 0].copy()}, tmp_path / "model.safetensors")
    stored = read_stored_tensors(tmp_path, ["model.safetensors"])
    content = (tmp_path / "model.safetensors").read_bytes()
    for fused in (WHOLE, WHOLE[:, 0]):
        for part in np.split(fused, parts):
            place = stored[float32_key(part)]
            assert content[place.offset : place.offset + place.length] == part.tobytes()


HALVES = np.array([0.0, -0.0, 1.5, -(2.0**-24), 65504, -65504, 6e-8, 1 / 3], np.float16)


def test_float16_is_found_by_what_it_is_in_float32(tmp_path: Path) -> None:
    save_file({"weight": HALVES}, tmp_path / "model.safetensors")
    stored = read_stored_tensors(tmp_path, ["model.safetensors"])
    place = stored[float32_key(HALVES.astype(np.float32))]
    assert (place.dtype, place.length) == ("F16", HALVES.nbytes)


def save_bfloat16(upper: NDArray[np.uint16], file: Path) -> None:
    content = save({"weight": upper}).replace(b'"U16"', b'"BF16"')
    header = content[8:].split(b"}}")[0] + b"}}"
    body = content[-upper.nbytes :]
    file.write_bytes(struct.pack("<Q", len(header)) + header + body)


def test_bfloat16_is_found_by_what_it_is_in_float32(tmp_path: Path) -> None:
    """Its numbers are the upper halves of float32; numpy cannot name them, so the header is made."""
    wide = np.array([0, -1.5, 3e38, -1e-40, 2.0**-133], np.float32)
    upper = (wide.view(np.uint32) >> 16).astype(np.uint16)
    exact = (upper.astype(np.uint32) << 16).view(np.float32)
    save_bfloat16(upper, tmp_path / "model.safetensors")
    stored = read_stored_tensors(tmp_path, ["model.safetensors"])
    assert stored[float32_key(exact)].dtype == "BF16"


@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, None])
def test_a_tensor_with_a_number_that_is_not_finite_is_refused_by_its_name(
    tmp_path: Path, dtype: type | None, number: float
) -> None:
    values, file = np.ones(300_000, np.float32), tmp_path / "model.safetensors"
    for guilty in (False, True):
        values[-1] = number if guilty else 3e4
        if dtype is None:
            save_bfloat16((values.view(np.uint32) >> 16).astype(np.uint16), file)
        else:
            save_file({"ids": np.full(3, -1), "weight": values.astype(dtype)}, file)
        if not guilty:
            assert read_stored_tensors(tmp_path, [file.name])
    with pytest.raises(ImportRefused, match=r"model\.safetensors: weight holds NaN or infinity"):
        read_stored_tensors(tmp_path, [file.name])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a safetensors file"),
        (b"\x05\0\0\0\0\0\0\0hello", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
        (save({"weight": WHOLE})[:-1], "not a safetensors file: it is cut off"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_its_path(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ImportRefused, match=rf"model\.safetensors: {reason}"):
        read_stored_tensors(tmp_path, ["model.safetensors"])


def test_a_file_that_is_absent_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"absent\.safetensors: No such file"):
        read_stored_tensors(tmp_path, ["absent.safetensors"])
