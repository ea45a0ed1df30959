from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from server.fitting.neighbours import average_ranks, nearest, overlap, spearman
from server.inference.pooling import normalize

VECTORS = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)


@pytest.mark.parametrize("block_bytes", [1, 4 * 200 * 7, 10**9])
def test_neighbours_are_those_of_the_whole_table_whatever_the_block(
    block_bytes: int,
) -> None:
    unit = normalize(VECTORS)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-cosines, axis=1)[:50, :10]
    found = nearest(unit, 50, block_bytes=block_bytes)
    assert np.array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))


def test_the_overlap_is_the_share_found_again_in_any_order() -> None:
    full = np.array([range(10), range(10), range(10)])
    short = np.array([[*range(9, -1, -1)], [*range(5, 15)], [*range(20, 30)]])
    assert overlap(full, short).tolist() == [1.0, 0.5, 0.0]


@given(arrays(np.float64, st.integers(1, 30), elements=st.integers(-3, 3).map(float)))
def test_ranks_are_those_of_scipy_also_with_ties(values: NDArray[np.float64]) -> None:
    assert np.array_equal(average_ranks(values), rankdata(values))


def test_the_correlation_is_that_of_scipy() -> None:
    left, right = normalize(VECTORS[:100]), normalize(VECTORS[100:])
    scores = np.round(np.random.default_rng(1).uniform(0, 5, 100)).tolist()
    expected = 100 * spearmanr((left * right).sum(axis=1), scores).statistic
    assert spearman(left, right, scores) == pytest.approx(expected)
