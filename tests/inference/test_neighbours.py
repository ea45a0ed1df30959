from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from server.inference import neighbours
from server.inference.neighbours import average_ranks, nearest, overlap, shared_neighbours, spearman
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


def nearest_in_float64(vectors: NDArray[np.float32], query: int) -> set[int]:
    """The ten nearest others of one text, from the whole row sorted."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    order = [int(place) for place in np.argsort(-(wide @ wide[query]), kind="stable")]
    return set([place for place in order if place != query][:10])


@pytest.mark.parametrize("block_bytes", [1, 4 * 200 * 7, 10**9])
def test_shared_neighbours_are_those_of_whole_rows_whatever_the_block_and_the_sizes(
    block_bytes: int,
) -> None:
    other = VECTORS[:, :12]
    queries = np.array([0, 3, 4, 77, 150, 198, 199])
    found = shared_neighbours(
        normalize(VECTORS), normalize(other), queries, block_bytes=block_bytes
    )
    expected = [
        len(nearest_in_float64(VECTORS, query) & nearest_in_float64(other, query)) / 10
        for query in queries
    ]
    assert len(set(expected)) > 3
    assert found.tolist() == pytest.approx(expected)


def sets_of_nearest(unit: NDArray[np.float32], query: int, count: int) -> list[set[int]]:
    """Every set that may be called the nearest ones: none left out is nearer than one in it."""
    others = [place for place in range(len(unit)) if place != query]
    cosines = {place: float(unit[place] @ unit[query]) for place in others}
    return [
        set(some)
        for some in itertools.combinations(others, count)
        if min(cosines[place] for place in some)
        >= max((cosines[place] for place in others if place not in some), default=-2) - 1e-6
    ]


POINTS = arrays(np.float32, (7, 2), elements=st.integers(-1, 1).map(float)).filter(
    lambda points: bool(points.any(axis=1).all())
)


@given(POINTS, POINTS)
@settings(max_examples=40)
def test_ties_are_broken_in_the_way_that_keeps_most(
    left: NDArray[np.float32], right: NDArray[np.float32]
) -> None:
    left, right = normalize(left), normalize(right)
    with mock.patch.object(neighbours, "NEIGHBOURS", 3):
        found = shared_neighbours(left, right, np.arange(7))
    expected = [
        max(
            len(one & other)
            for one in sets_of_nearest(left, query, 3)
            for other in sets_of_nearest(right, query, 3)
        )
        for query in range(7)
    ]
    assert np.rint(found * 3).tolist() == expected
