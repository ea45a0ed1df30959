"""Distances fall into the buckets that T5's paper describes."""

from __future__ import annotations

import numpy as np
import pytest

from server.importing.witness.relative_bias import bias_of, buckets


@pytest.mark.parametrize(
    ("distance", "bucket"),
    # 32 buckets: 16 a side, of which 8 hold one distance each; 16, 32 and 64 begin every second.
    [
        *((0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-16, 10), (-32, 12), (-64, 14)),
        *((-127, 15), (-128, 15), (-9999, 15), (1, 17), (7, 23), (8, 24), (64, 30), (9999, 31)),
    ],
)
def test_near_distances_have_a_bucket_each_and_far_ones_share(distance: int, bucket: int) -> None:
    assert buckets(np.array([distance]), 32, 128)[0] == bucket


def test_a_row_looks_at_a_column() -> None:
    table = np.arange(64, dtype=np.float32).reshape(32, 2)
    bias = bias_of(table, 3, 128)
    assert bias.shape == (2, 3, 3)
    assert bias[0, 2, 0] == table[2, 0]  # two tokens back
    assert bias[1, 0, 2] == table[18, 1]  # two tokens on
