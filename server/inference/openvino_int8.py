"""Weight matrices of a graph that OpenVINO has read, made int8 before it is compiled.

Symmetric, with a scale a row (an output of the matrix), by rounding to the nearest: for a row w,
scale = max|w| / 127 and q = round(w / scale). What a token brings is quantised when it is computed,
which OpenVINO does by itself for such matrices. Needs no text to calibrate with. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from server.catalog.int8_recipe import Int8Recipe
from server.inference.openvino_library import ops, ov

_LARGEST = 127  # -128 would have no counterpart
_LOOKED_THROUGH = {"Convert", "Transpose"}  # between a stored matrix and its product
_FLOATS = {ov.Type.f32, ov.Type.f16, ov.Type.bf16}


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with a stored matrix."""

    node: ov.Node  # MatMul
    weight: ov.Node  # Constant
    rows_are_outputs: bool  # of the stored matrix


def count_weights(model: ov.Model) -> int:
    """Numbers in the stored matrices that are multiplied with."""
    found = {one.weight.friendly_name: one.weight.shape for one in _find_products(model)}
    return sum(rows * columns for rows, columns in found.values())


def quantize(
    model: ov.Model,
    recipe: Int8Recipe,
    made_one: Callable[[ov.Node, ov.Output], None] = lambda stored, made: None,
) -> int:
    """Replace stored matrices by int8 ones with scales; a matrix at a time is held in float32.

    Left as they are: what the recipe keeps, and matrices whose inputs its groups do not divide.

    Args:
        made_one: called with each stored matrix, once it is no longer wanted, and what it became.

    Returns:
        How many products compute in int8 now.
    """
    made: dict[tuple[str, bool], ov.Output] = {}  # layers may share a matrix
    count = 0
    for product in _find_products(model):
        matrix = product.weight
        inputs = matrix.shape[1 if product.rows_are_outputs else 0]
        names = (matrix.friendly_name, product.node.friendly_name)
        if inputs % recipe.group_size or _is_kept(names, recipe):
            continue
        key = (matrix.friendly_name, product.rows_are_outputs)
        if key not in made:
            made[key] = _scaled(matrix.get_data(dtype=np.float32), product.rows_are_outputs)
        attributes = product.node.get_attributes()
        fresh = ops.matmul(
            product.node.input_value(0), made[key], attributes["transpose_a"], transpose_b=True
        )
        fresh.friendly_name = product.node.friendly_name
        for target in product.node.output(0).get_target_inputs():
            target.replace_source_output(fresh.output(0))
        made_one(matrix, made[key])
        count += 1
    return count


def _scaled(matrix: NDArray[np.float32], rows_are_outputs: bool) -> ov.Output:
    rows = matrix if rows_are_outputs else np.ascontiguousarray(matrix.T)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(_LARGEST)
    scales[scales == 0] = 1  # a row of zeros
    scaled = rows / scales
    whole = np.rint(scaled, out=scaled).astype(np.int8)
    wide = ops.convert(ops.constant(whole), "f32")
    return ops.multiply(wide, ops.constant(scales)).output(0)


def _find_products(model: ov.Model) -> Iterator[_Product]:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        rows_are_outputs = bool(node.get_attributes()["transpose_b"])
        source = node.input_value(1).get_node()
        while source.get_type_name() in _LOOKED_THROUGH:
            rows_are_outputs ^= source.get_type_name() == "Transpose"
            source = source.input_value(0).get_node()
        stored = source.get_type_name() == "Constant" and source.get_element_type() in _FLOATS
        if stored and len(source.shape) == 2:
            yield _Product(node, source, rows_are_outputs)


def _is_kept(names: tuple[str, ...], recipe: Int8Recipe) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in recipe.keep for name in names)
