"""Weight matrices of a graph that OpenVINO has read, made int8 before it is compiled.

With a scale and a zero point a row (an output of the matrix), by rounding to the nearest: for a row
w and zero, scale = (max - min) / 255, zero_point = round(-min / scale) and q = round(w / scale) +
zero_point, from 0 to 255. As fast as symmetric integers here, and nearer: 0.97 in place of 0.96 of ten
nearest neighbours (all-MiniLM-L6-v2, groups of 128). What a token brings is quantised when it is
computed, which OpenVINO does by itself for such matrices. Needs no text to calibrate with. The
fingerprint has a name for this (`Int8Recipe.facts`): who changes the formula changes the name. Any
thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.catalog.int8_recipe import Int8Recipe, StoredMatrix
from server.inference.openvino_library import CORE, ops, ov

_LARGEST = 255
_LOOKED_THROUGH = {"Convert", "Transpose"}  # between a stored matrix and its product
_FLOATS = {ov.Type.f32, ov.Type.f16, ov.Type.bf16}


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with a stored matrix."""

    node: ov.Node  # MatMul
    weight: ov.Node  # Constant
    rows_are_outputs: bool  # of the stored matrix

    @property
    def stored(self) -> StoredMatrix:
        """What there is to say of the matrix."""
        rows, columns = self.weight.shape
        outputs, inputs = (rows, columns) if self.rows_are_outputs else (columns, rows)
        names = (self.weight.friendly_name, self.node.friendly_name)
        return StoredMatrix(*names, inputs=inputs, outputs=outputs)


def stored_matrices(graph: Path) -> tuple[StoredMatrix, ...]:
    """Of each product with a matrix that could be int8, in the order of computing.

    Raises:
        RuntimeError: OpenVINO refuses the graph.
    """
    return tuple(product.stored for product in _find_products(CORE.read_model(graph)))


def count_weights(model: ov.Model) -> int:
    """Numbers in the stored matrices that are multiplied with."""
    found = {one.weight.get_name(): one.weight.shape for one in _find_products(model)}
    return sum(rows * columns for rows, columns in found.values())


def quantize(
    model: ov.Model,
    recipe: Int8Recipe,
    made_one: Callable[[ov.Node, ov.Output], None] = lambda stored, made: None,
) -> int:
    """Replace stored matrices by int8 ones with scales; a matrix at a time is held in float32.

    Left as they are: what the recipe keeps, and matrices whose inputs its groups do not divide.

    Args:
        made_one: called once with each matrix that was made, after the stored one.

    Returns:
        How many products compute in int8 now.

    Raises:
        ValueError: the recipe keeps what the graph does not have.
    """
    products = list(_find_products(model))
    if missing := recipe.find_missing([product.stored for product in products]):
        raise ValueError(f"int8.keep: no weight matrix and no product is named {missing[0]!r}")
    made: dict[tuple[str, bool], ov.Output] = {}  # layers may share a matrix
    count = 0
    for product in products:
        matrix = product.weight
        if not recipe.makes_int8(product.stored):
            continue
        key = (matrix.get_name(), product.rows_are_outputs)  # a friendly name may be another's
        if key not in made:
            made[key] = _scaled(matrix.get_data(dtype=np.float32), product.rows_are_outputs)
            made_one(matrix, made[key])
        attributes = product.node.get_attributes()
        # Published graphs may be float16; scales are float32, and a product wants both sides alike.
        kind = product.node.get_output_element_type(0)
        wide = ops.convert(product.node.input_value(0), "f32")
        computed = ops.matmul(wide, made[key], attributes["transpose_a"], transpose_b=True)
        fresh = ops.convert(computed, kind.get_type_name())
        fresh.friendly_name = product.node.friendly_name
        for target in product.node.output(0).get_target_inputs():
            target.replace_source_output(fresh.output(0))
        count += 1
    return count


def _scaled(matrix: NDArray[np.float32], rows_are_outputs: bool) -> ov.Output:
    rows = matrix if rows_are_outputs else np.ascontiguousarray(matrix.T)
    least = np.minimum(rows.min(axis=1, keepdims=True), 0)
    scales = (np.maximum(rows.max(axis=1, keepdims=True), 0) - least) / np.float32(_LARGEST)
    scales[scales == 0] = 1  # a row of zeros
    zero_points = np.rint(-least / scales)
    scaled = rows / scales
    np.rint(scaled, out=scaled)
    scaled += zero_points
    whole = np.clip(scaled, 0, _LARGEST, out=scaled).astype(np.uint8)
    wide, zeros = (
        ops.convert(ops.constant(one), "f32") for one in (whole, zero_points.astype(np.uint8))
    )
    return ops.multiply(ops.subtract(wide, zeros), ops.constant(scales)).output(0)


def _find_products(model: ov.Model) -> Iterator[_Product]:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        rows_are_outputs = bool(node.get_attributes()["transpose_b"])
        source = node.input_value(1).get_node()
        while source.get_type_name() in _LOOKED_THROUGH:
            if source.get_type_name() == "Transpose":
                if not _swaps(source):
                    break
                rows_are_outputs = not rows_are_outputs
            source = source.input_value(0).get_node()
        stored = source.get_type_name() == "Constant" and source.get_element_type() in _FLOATS
        if stored and len(source.shape) == 2:
            yield _Product(node, source, rows_are_outputs)


def _swaps(transpose: ov.Node) -> bool:
    """Whether rows become columns; without an order all axes are turned round."""
    order = transpose.input_value(1).get_node()
    return order.get_type_name() == "Constant" and order.get_data().tolist() in ([], [1, 0])
