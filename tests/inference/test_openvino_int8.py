"""Matrices become int8 by the formula that is promised, and only those that should."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.int8_recipe import Int8Recipe
from server.inference.openvino_int8 import count_weights, quantize
from server.inference.openvino_library import ops, ov

MATRIX = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)  # 64 inputs
MATRIX[2] = 0
# Whose ends are halves of a step of 1, rounded to even: 4 + 252 = 256 is one more than there is.
MATRIX[5] = np.linspace(-3.5, 251.5, 64)
MATRIX[3], MATRIX[4] = np.abs(MATRIX[3]) + 0.5, -np.abs(MATRIX[4]) - 0.5  # of one sign


def constant(matrix: NDArray[np.float32], stored: str, name: str = "layer.up.weight") -> Any:
    if stored == "f32":
        node = ops.constant(matrix)
    else:
        tensor = ov.Tensor(getattr(ov.Type, stored), ov.Shape(matrix.shape))
        cut_off = (matrix.view(np.uint32) >> 16).astype(np.uint16)
        halves = matrix.astype(np.float16).view(np.uint16) if stored == "f16" else cut_off
        tensor.data.view(np.uint16)[:] = halves
        node = ops.constant(tensor)
    node.friendly_name = name
    return node


def product(weight: Any, *, transposed: bool, name: str = "/layer/up/MatMul") -> Any:
    inputs = ops.parameter([-1, 64], np.float32)
    node = ops.matmul(inputs, weight, transpose_a=False, transpose_b=transposed)
    node.friendly_name = name
    return ov.Model([node], [inputs], "product")


@dataclass(frozen=True)
class Stored:
    """What a product multiplies by: (integers - zero_points) * scales."""

    integers: NDArray[np.uint8]
    zero_points: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @property
    def matrix(self) -> NDArray[np.float32]:
        return (self.integers.astype(np.float32) - self.zero_points) * self.scales


def weights_of(model: Any) -> Stored | None:
    """Of the model's product, if they are integers."""
    (node,) = [one for one in model.get_ordered_ops() if one.get_type_name() == "MatMul"]
    scaled = node.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply":
        return None
    assert node.get_attributes()["transpose_b"]
    moved = scaled.input_value(0).get_node()
    assert moved.get_type_name() == "Subtract"
    integers, zero_points = (
        moved.input_value(place).get_node().input_value(0).get_node().get_data() for place in (0, 1)
    )
    return Stored(integers, zero_points, scaled.input_value(1).get_node().get_data())


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("form", ["rows", "columns", "transposed rows"])
def test_each_row_keeps_its_range_and_no_number_moves_by_more_than_half_a_step(
    stored: str, form: str
) -> None:
    weight = constant(MATRIX if form != "columns" else np.ascontiguousarray(MATRIX.T), stored)
    if stored != "f32":
        weight = ops.convert(weight, "f32")
    if form == "transposed rows":
        weight = ops.transpose(weight, ops.constant(np.array([1, 0])))
    model = product(weight, transposed=form == "rows")
    assert quantize(model, Int8Recipe()) == 1
    found = weights_of(model)
    assert found is not None
    assert (found.integers.shape, found.integers.dtype.name) == ((6, 64), "uint8")
    assert found.zero_points.shape == found.scales.shape == (6, 1)
    coarse = 0 if stored == "f32" else 2**-7  # bfloat16 is stored with 8 bits, cut off here
    ends = np.minimum(MATRIX.min(axis=1), 0), np.maximum(MATRIX.max(axis=1), 0)
    steps = (ends[1] - ends[0]) / 255
    steps[2] = 1
    np.testing.assert_allclose(found.scales[:, 0], steps, rtol=coarse + 1e-6)
    assert (found.matrix[2] == 0).all()
    off = np.abs(found.matrix - MATRIX)
    assert (off <= found.scales / 2 * 1.0001 + coarse * np.abs(MATRIX)).all()


@pytest.mark.parametrize(
    ("recipe", "quantized"),
    [
        (Int8Recipe(), True),
        (Int8Recipe(keep=("*.up.weight",)), False),
        (Int8Recipe(keep=("/layer/*/MatMul",)), False),
        (Int8Recipe(group_size=128), False),  # which does not divide 64 inputs
    ],
)
def test_what_the_recipe_keeps_and_what_its_groups_do_not_divide_stays(
    recipe: Int8Recipe, quantized: bool
) -> None:
    model = product(constant(MATRIX, "f32"), transposed=True)
    assert quantize(model, recipe) == quantized
    assert (weights_of(model) is not None) == quantized


@pytest.mark.parametrize("pattern", ["up", "*.down.*"])  # no part of a name, but a pattern of it
def test_a_pattern_that_keeps_nothing_is_an_error(pattern: str) -> None:
    model = product(constant(MATRIX, "f32"), transposed=True)
    line = f"int8.keep: no weight matrix and no product is named {pattern!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        quantize(model, Int8Recipe(keep=("*.up.weight", pattern)))


@pytest.mark.parametrize(("order", "quantized"), [([1, 0], 1), ([], 1), ([0, 1], 0)])
def test_a_transpose_is_read_by_its_order(order: list[int], quantized: int) -> None:
    square = np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32)
    turned = ops.transpose(constant(square, "f32"), ops.constant(np.array(order, np.int64)))
    model = product(turned, transposed=False)
    assert quantize(model, Int8Recipe()) == quantized
    if quantized:
        found = weights_of(model)
        assert found is not None
        np.testing.assert_allclose(found.matrix, square, atol=0.02)


def test_a_product_of_two_computed_matrices_is_left_alone() -> None:
    left, right = (ops.parameter([-1, 64], np.float32) for _ in range(2))
    node = ops.matmul(left, right, transpose_a=False, transpose_b=True)
    assert quantize(ov.Model([node], [left, right], "attention"), Int8Recipe()) == 0


def test_layers_that_share_a_matrix_go_on_sharing_it() -> None:
    shared = constant(np.ascontiguousarray(MATRIX[:, :6].T @ MATRIX), "f32")
    square = constant(np.eye(64, dtype=np.float32), "f32", "square")
    inputs = ops.parameter([-1, 64], np.float32)
    first = ops.matmul(inputs, square, transpose_a=False, transpose_b=True)
    second = ops.matmul(first, square, transpose_a=False, transpose_b=True)
    last = ops.matmul(second, shared, transpose_a=False, transpose_b=True)
    model = ov.Model([last], [inputs], "layers")
    made: list[str] = []
    assert quantize(model, Int8Recipe(), lambda one, _: made.append(one.friendly_name)) == 3
    assert made == ["square", "layer.up.weight"]
    integers = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.u8
        if len(node.shape) == 2 and node.shape[1] > 1
    ]
    assert len(integers) == 2


def test_unlike_matrices_of_one_name_are_two() -> None:
    first, second = (
        constant(
            np.random.default_rng(n).standard_normal((64, 64)).astype(np.float32), "f32", "same"
        )
        for n in (6, 7)
    )
    inputs = ops.parameter([-1, 64], np.float32)
    half = ops.matmul(inputs, first, transpose_a=False, transpose_b=True)
    last = ops.matmul(half, second, transpose_a=False, transpose_b=True)
    model = ov.Model([last], [inputs], "layers")
    assert count_weights(model) == 2 * 64 * 64
    made: list[ov.Output] = []
    assert quantize(model, Int8Recipe(), lambda _, became: made.append(became)) == 2
    assert len(made) == 2
