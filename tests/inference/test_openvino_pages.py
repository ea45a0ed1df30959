"""Weights give their memory back, and stay what they are."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import GRAPH_FILE, Card
from server.catalog.int8_recipe import Int8Recipe
from server.inference import openvino_backend
from server.inference.backend import TokenIds
from server.inference.openvino_backend import OpenvinoBackend
from server.inference.openvino_library import CORE, ops, ov
from server.inference.openvino_pages import Scratch, keep_as_stored, page_out
from tests.inference.test_openvino_int8 import constant
from tests.low_precision import is_refused

NUMBERS = np.random.default_rng(4)
LARGE = NUMBERS.integers(0, 255, (512, 1024)).astype(np.uint8)  # 512 KiB
SMALL = LARGE[:2, :2]
ROOM = 4 * LARGE.nbytes
PAGEOUT = 21


def product(weights: NDArray[Any]) -> ov.Model:
    inputs = ops.parameter([-1, weights.shape[1]], np.float32)
    wide = ops.convert(ops.constant(weights), "f32")
    scaled = ops.multiply(wide, ops.constant(np.full((len(weights), 1), 0.5, np.float32)))
    return ov.Model([ops.matmul(inputs, scaled, False, True)], [inputs], "product")


def scaled_of(model: ov.Model) -> ov.Output:
    (node,) = [one for one in model.get_ordered_ops() if one.get_type_name() == "MatMul"]
    return node.input_value(1)


def stored(model: ov.Model) -> NDArray[Any]:
    convert = scaled_of(model).get_node().input_value(0).get_node()
    weights: NDArray[Any] = convert.input_value(0).get_node().data
    return weights


def mapping(weights: NDArray[Any]) -> tuple[str, int]:
    """What is mapped where an array lies, and how many kB of it are in memory."""
    found, at = "", weights.ctypes.data
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= at < high
            found = line if inside else found
        elif inside and first == "Rss:":
            return found, int(rest[0])
    raise AssertionError(found)


def test_weights_made_at_load_lie_in_a_file_and_stay_the_same() -> None:
    scratch = Scratch(ROOM)
    descriptors = count_descriptors()
    models = [product(LARGE), product(LARGE[::-1, :700]), product(LARGE[:, ::-1])]
    expected = [stored(model).copy() for model in models]
    for model in models:
        scratch.move(scaled_of(model))
    scratch.close()  # what holds the weights is the model
    assert count_descriptors() <= descriptors + 1
    for model, weights in zip(models, expected, strict=True):
        page_out(model)
        assert "(deleted)" in mapping(stored(model))[0]
        np.testing.assert_array_equal(stored(model), weights)
        compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
        (found,) = compiled(np.eye(weights.shape[1], dtype=np.float32)).values()
        np.testing.assert_allclose(found, weights.T / 2, rtol=1e-6)


def test_small_weights_stay_where_they_are() -> None:
    model = product(SMALL)
    Scratch(ROOM).move(scaled_of(model))
    assert "deleted" not in mapping(stored(model))[0]


def test_without_a_temporary_file_weights_stay_in_memory_and_somebody_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    model = product(LARGE)
    Scratch(ROOM).move(scaled_of(model))
    np.testing.assert_array_equal(stored(model), LARGE)
    assert "temporary file failed: [Errno 28] No space left" in caplog.text


class Full(io.FileIO):
    """A file on a disk that has no room for the last bytes: they are left in Python's buffer."""

    room = LARGE.nbytes - 100

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = super().write(data[: self.room])
        self.room -= written
        return written


def test_a_disk_that_fills_up_is_told_once_and_weights_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = io.BufferedRandom(Full(tmp_path / "full", "w+"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: file)
    models = [product(LARGE), product(LARGE[::-1])]
    with contextlib.closing(Scratch(ROOM)) as scratch:
        for model in models:
            scratch.move(scaled_of(model))
    assert file.closed
    assert caplog.text.count("No space left") == 1
    np.testing.assert_array_equal(stored(models[0]), LARGE)


def test_more_weights_than_were_told_of_stay_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    models = [product(LARGE), product(LARGE[::-1])]
    with contextlib.closing(Scratch(LARGE.nbytes)) as scratch:
        for model in models:
            scratch.move(scaled_of(model))
    assert ["(deleted)" in mapping(stored(model))[0] for model in models] == [True, False]
    assert "No space left" in caplog.text


def test_pages_of_a_file_leave_memory_as_far_as_the_system_can(tmp_path: Path) -> None:
    """Compared with Python's own call: a file system in memory has nowhere to put them."""
    arrays = []
    for name in ("ours", "control"):
        with (tmp_path / name).open("wb") as file:
            file.write(LARGE.tobytes())
            os.fsync(file.fileno())  # what is not written yet may stay
        array = np.memmap(tmp_path / name, np.uint8, "r+", shape=LARGE.shape)
        assert array.sum() == LARGE.sum()  # it is in memory
        arrays.append(array)
    ours, control = arrays
    shared = ops.constant(ours, shared_memory=True)
    whole = mapping(ours)[1]
    control._mmap.madvise(PAGEOUT)  # type: ignore[attr-defined]
    page_out(ov.Model([shared], [], "weights"))
    assert mapping(ours)[1] == mapping(control)[1] <= whole
    np.testing.assert_array_equal(ours, LARGE)


def test_weights_in_memory_alone_keep_their_numbers() -> None:
    memory = mmap.mmap(-1, LARGE.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anonymous = np.frombuffer(memory, np.uint8).reshape(LARGE.shape)
    anonymous[:] = LARGE
    page_out(ov.Model([ops.constant(anonymous, shared_memory=True)], [], "weights"))
    np.testing.assert_array_equal(anonymous, LARGE)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def files_without_a_name() -> int:
    return Path("/proc/self/maps").read_text().count("(deleted)")


def largest_float32(kept: bool) -> int:
    """Bytes of the largest weight that a compiled bfloat16 product holds in float32."""
    inputs = ops.parameter([-1, 64], np.float32)
    matrix = NUMBERS.standard_normal((6, 64)).astype(np.float32)
    weight = ops.convert(constant(matrix, "bf16"), "f32")
    model = ov.Model([ops.matmul(inputs, weight, False, True)], [inputs], "product")
    if kept:
        keep_as_stored(model)
    compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    held = [
        node.get_output_shape(0)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const"
        and node.get_rt_info()["outputPrecisions"].astype(str) == "f32"
    ]
    return max((int(np.prod(shape)) for shape in held), default=0)


def test_weights_of_16_bits_are_not_widened_at_load() -> None:
    if not is_refused("bfloat16"):
        assert largest_float32(kept=True) == 0
        assert largest_float32(kept=False) == 6 * 64


def test_a_heavy_model_is_laid_out_once_and_gives_the_same_bits(
    plain_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_refused("int8"):
        return

    def opened(least: int) -> OpenvinoBackend:
        monkeypatch.setattr(openvino_backend, "_HEAVY_WEIGHTS", least)
        graph, recipe = plain_card.path(GRAPH_FILE), Int8Recipe()
        return OpenvinoBackend(
            graph, max_input_tokens=256, recipe=recipe, worker_threads=2, wide_threads=2
        )

    texts: list[TokenIds] = [np.arange(1_000, 1_000 + n, dtype=np.int32) for n in (1, 12, 60)]
    before, first = files_without_a_name(), count_descriptors()
    light = opened(10**9)
    assert light._narrow is not light._wide
    assert light.concurrent_passes is None
    assert files_without_a_name() == before
    second = count_descriptors()
    heavy = opened(1)
    assert files_without_a_name() == before + 1  # for 36 matrices
    assert count_descriptors() - second <= second - first + 1
    assert heavy._narrow is heavy._wide
    assert heavy.concurrent_passes == 1
    for alone in (True, False):
        assert heavy.forward(texts, alone=alone).tobytes() == light.forward(texts).tobytes()
