from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from server.inference import agreement
from server.inference.agreement import agreement_of

DRAW = np.random.default_rng(0)
LEFT = DRAW.standard_normal((23, 7)).astype(np.float32)
RIGHT = LEFT + DRAW.standard_normal((23, 7)).astype(np.float32)


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """By sums without rounding of exact products of float32 numbers."""
    one, other = left.tolist(), right.tolist()
    lengths = math.sqrt(math.fsum(x * x for x in one)) * math.sqrt(math.fsum(y * y for y in other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths


@pytest.mark.parametrize("rows", [1, 5, 23, 4096])
def test_all_rows_count_whatever_the_block(rows: int) -> None:
    with mock.patch.object(agreement, "_BLOCK_ROWS", rows):
        found = agreement_of(LEFT, RIGHT)
    similar = [cosine(left, right) for left, right in zip(LEFT, RIGHT, strict=True)]
    assert found.texts == 23
    assert found.min_cosine == pytest.approx(min(similar), rel=1e-12)
    assert found.mean_cosine == pytest.approx(math.fsum(similar) / 23, rel=1e-12)
    assert found.worst == similar.index(min(similar))
    apart = [abs(x - y) for x, y in zip(LEFT.ravel(), RIGHT.ravel(), strict=True)]
    assert found.max_difference == max(apart)
    assert not found.bit_equal


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_without_direction_does_not_hide(value: float, row: int) -> None:
    broken = LEFT[:5].copy()
    broken[row] = value
    with mock.patch.object(agreement, "_BLOCK_ROWS", 2):
        found = agreement_of(LEFT[:5], broken)
    assert math.isnan(found.min_cosine)
    assert math.isnan(found.mean_cosine)
    assert found.worst == row


def test_bits_are_compared_not_values() -> None:
    zeros, negative = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    zeros[1, 1], negative[1, 1] = 0.0, -0.0
    assert agreement_of(zeros, zeros.copy()).bit_equal
    found = agreement_of(zeros, negative)
    assert (found.bit_equal, found.max_difference) == (False, 0.0)


@pytest.mark.parametrize("shape", [(22, 7), (23, 6), (0, 7)])
def test_other_shapes_are_no_comparison(shape: tuple[int, int]) -> None:
    other = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement_of(other if not len(other) else LEFT, other)
